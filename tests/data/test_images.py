"""Collections of images on disk, and the embeddings that go with them."""

import io

import numpy as np
import pytest
from image_files import encoded, pack, pictures
from PIL import Image

from projkern.data import open_images
from projkern.data.embeddings import read_embeddings
from projkern.data.images import DamagedFile
from projkern.utils.errors import InputError


def read_all(images, size, **options):
    parts = list(images.batches(size, **options))
    return [np.concatenate(each) for each in zip(*parts)]


def test_class_folders(tmp_path):
    pixels = pictures(5, 8)
    for name, image in zip(("b/2.png", "b/10.png", "a/deep/x.bmp", "a/y.PNG", "c/z.png"), pixels):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    images = open_images(tmp_path)
    assert list(images.names) == ["a/deep/x.bmp", "a/y.PNG", "b/10.png", "b/2.png", "c/z.png"]
    assert images.labels.tolist() == [0, 0, 1, 1, 2] and images.labels.dtype == np.int64
    kept, read = read_all(images, 8, batch=2)
    assert kept.tolist() == [0, 1, 2, 3, 4] and read.dtype == np.uint8
    assert np.array_equal(read, pixels[[2, 3, 1, 0, 4]])
    kept, read = read_all(images, 8, indices=[3, 0])
    assert kept.tolist() == [3, 0] and np.array_equal(read, pixels[[0, 2]])


def test_jpeg_npz(tmp_path):
    pixels = pictures(3, 8)
    grey = Image.fromarray(pixels[0]).convert("L")
    file = io.BytesIO()
    grey.save(file, "JPEG")
    names = np.array(["one.JPEG", "two.JPEG", "three.JPEG"])
    path = pack(tmp_path / "i.npz", [file.getvalue(), encoded(pixels[1]), encoded(pixels[2])], [4, 2, 9], names=names)
    images = open_images(path)
    assert images.labels.tolist() == [4, 2, 9] and images.names == names.tolist()
    _, read = read_all(images, 8)
    assert np.array_equal(read[0, ..., 0], read[0, ..., 2])  # grey became RGB
    assert np.array_equal(read[1:], pixels[1:])


def test_downsampled_imagenet(tmp_path):
    pixels = pictures(7, 8)
    flat = pixels.transpose(0, 3, 1, 2).reshape(7, -1)
    for number, part in ((2, slice(0, 4)), (10, slice(4, 7))):
        labels = list(range(1, 8))[part]
        np.savez(tmp_path / f"batch_{number}.npz", data=flat[part], labels=labels, mean=flat[0])
    for path, labels in ((tmp_path, list(range(7))), (tmp_path / "batch_10.npz", [4, 5, 6])):
        images = open_images(path)
        assert images.labels.tolist() == labels
        kept, read = read_all(images, 8, batch=3)
        assert np.array_equal(read, pixels[labels]) and kept.tolist() == list(range(len(labels)))
    assert open_images(tmp_path).names[4] == "batch_10.npz:0"
    (tmp_path / "batch_10.npz").write_bytes((tmp_path / "batch_2.npz").read_bytes()[:-200])
    with pytest.raises(InputError, match=r"batch_10\.npz must be an \.npz file"):
        open_images(tmp_path)


def test_damaged_pixels_found_while_reading(tmp_path):
    path = tmp_path / "b.npz"
    np.savez_compressed(path, data=np.random.default_rng(0).integers(0, 256, (4, 48)).astype(np.uint8), labels=[1] * 4)
    images = open_images(path)
    data = bytearray(path.read_bytes())
    at = data.find(b"data.npy") + 160
    data[at : at + 30] = bytes(30)
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match="b.npz is damaged"):
        read_all(images, 4)


def test_other_sizes_are_cropped_and_resized_with_antialiasing(tmp_path):
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, :16], wide[:, 48:] = 255, 255  # outside the central square
    wide[:, 16:48:2] = 200  # stripes that antialiasing turns to grey
    images = open_images(pack(tmp_path / "i.npz", [encoded(wide)], [0]))
    _, read = read_all(images, 8)
    assert read.shape == (1, 8, 8, 3)
    assert (np.abs(read.astype(int)[:, :, 1:-1] - 100) < 12).all()


def test_unreadable_images_are_skipped_and_counted(tmp_path):
    good = encoded(pictures(1, 8)[0])
    files = [good, b"rubbish", good[:-30], b"", good]
    images = open_images(pack(tmp_path / "i.npz", files, range(5)))
    assert images.describe_skipped() == ""
    kept, read = read_all(images, 8, batch=2)
    assert kept.tolist() == [0, 4] and len(read) == 2 and images.skipped == {1, 2, 3}
    assert images.describe_skipped() == (
        f"3 of 5 images of {tmp_path / 'i.npz'} could not be read: i.npz:1, i.npz:2, i.npz:3"
    )


def test_what_holds_no_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds neither"):
        open_images(tmp_path / "empty")
    (tmp_path / "rubbish.npz").write_bytes(b"PK\x03\x04rubbish")
    with pytest.raises(InputError, match=r"rubbish\.npz must be an \.npz file"):
        open_images(tmp_path / "rubbish.npz")
    np.savez(tmp_path / "other.npz", x=[1])
    with pytest.raises(InputError, match="other.npz must hold labels; it holds x"):
        open_images(tmp_path / "other.npz")
    np.savez(tmp_path / "floats.npz", data=np.zeros((2, 48)), labels=[1, 2])
    with pytest.raises(InputError, match=r"data \(2, 3 S S\) uint8 .* it was \(2, 48\) float64"):
        open_images(tmp_path / "floats.npz")
    np.savez(tmp_path / "offsets.npz", jpeg=np.zeros(9, np.uint8), offsets=[0, 5, 12], labels=[1, 2])
    with pytest.raises(InputError, match="offsets that grow"):
        open_images(tmp_path / "offsets.npz")


# ---------------------------------------------------------------- embeddings


def test_embeddings(tmp_path):
    images = open_images(pack(tmp_path / "i.npz", [b""] * 3, [0] * 3, names=np.array(["a.png", "b.png", "c.png"])))
    t = np.arange(12, dtype=np.float16).reshape(3, 4)
    np.save(tmp_path / "t.npy", t)
    np.savez(tmp_path / "t.npz", train=t, val=-t, train_names=["a.png", "b.png", "c.png"])
    for path, split, expected in (("t.npy", "train", t), ("t.npz", "train", t), ("t.npz", "validation", -t)):
        read = read_embeddings(tmp_path / path, split, images)
        assert read.dtype == np.float32 and np.array_equal(read, expected)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"train": np.ones((4, 2))}, "as many as the train images, 3 in .*i.npz, and in the order of these; .* has 4"),
        ({"train": np.ones((3, 2)), "names": ["a.png", "c.png", "b.png"]}, "has c.png at row 1, where .* have b.png"),
        ({"train": np.ones((3, 2)), "names": ["a.png"]}, "name each of the 3 images once; .* has 1 names"),
        ({"train": np.array([[1.0], [np.inf], [1.0]])}, "must be finite; .* row 1 of train"),
        ({"train": np.ones(3)}, r"\(n, dim\); .* were \(3,\)"),
        ({"val": np.ones((3, 2))}, "holds val and no train"),
    ],
)
def test_embeddings_that_do_not_fit(tmp_path, stored, message):
    images = open_images(pack(tmp_path / "i.npz", [b""] * 3, [0] * 3, names=np.array(["a.png", "b.png", "c.png"])))
    np.savez(tmp_path / "t.npz", **stored)
    with pytest.raises(InputError, match=message):
        read_embeddings(tmp_path / "t.npz", "train", images)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_orientation_and_depth(tmp_path):
    """As a viewer shows it: turned as the EXIF data say, 16-bit grey as grey, and what has no known range left out."""
    pixels = pictures(1, 8)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "turned.png", exif=exif)
    broken = encoded(pixels, "JPEG")
    broken = broken[:2] + b"\xff\xe1\x00\x10Exif\0\0MM\0\x2a\xff\xff" + broken[4:4] + broken[2:]
    grey = (pixels[..., 0].astype(np.uint16) << 8) + 5
    Image.fromarray(grey).save(tmp_path / "deep.png")
    Image.fromarray(pixels[..., 0].astype(np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(pixels[..., 0].astype(np.int32) << 12).save(tmp_path / "integers.tiff")
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    files = ("turned.png", "deep.png", "float.tiff", "integers.tiff", "plain.png")
    images = open_images(pack(tmp_path / "i.npz", [*((tmp_path / f).read_bytes() for f in files), broken], range(6)))
    kept, read = read_all(images, 8)
    assert kept.tolist() == [0, 1, 4, 5] and images.skipped == {2, 3}
    assert np.array_equal(read[0], pixels) and np.array_equal(read[2], pixels)
    assert (np.abs(read[1].astype(int) - pixels[..., :1]) <= 1).all()


def test_hidden_files_are_no_data(tmp_path):
    """What file managers, version control and notebooks leave in folders."""
    for name in ("a/1.png", "a/._1.png", "a/.thumbnails/2.png", "b/.ipynb_checkpoints/3.png", "b/4.png", ".git/5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures(1, 8)[0]).save(tmp_path / name)
    images = open_images(tmp_path)
    assert list(images.names) == ["a/1.png", "b/4.png"] and images.labels.tolist() == [0, 1]
    flat = pictures(1, 8).transpose(0, 3, 1, 2).reshape(1, -1)
    np.savez(tmp_path / "batch.npz", data=flat, labels=[1])
    (tmp_path / "._batch.npz").write_bytes(b"of another system")
    assert list(open_images(tmp_path).names) == ["batch.npz:0"]
