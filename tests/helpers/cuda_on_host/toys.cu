// Little kernels, each intact or broken in one way, that show what the machine finds; and the primitives' arithmetic.
#include <string>

#include "../../../csrc/cuda/primitives.cuh"

namespace projkern::cuda {
namespace {

struct Toy {
    const float* in;
    float* out;
    bool intact;
};

float* shared_floats() { return reinterpret_cast<float*>(shared_memory()); }

void missing_barrier(const Toy& toy) {
    const int i = thread_index();
    shared_floats()[i] = toy.in[i];
    if (toy.intact) barrier();
    toy.out[i] = shared_floats()[i ^ 32];
}

void missing_second_barrier(const Toy& toy) {  // the buffer is used again
    const int i = thread_index();
    for (int round = 0; round < 3; ++round) {
        if (round == 0 || toy.intact) barrier();
        shared_floats()[i] = toy.in[i] + float(round);
        barrier();
        toy.out[i] = shared_floats()[255 - i];
    }
}

void missing_warp_barrier(const Toy& toy) {
    const int i = thread_index();
    shared_floats()[i] = toy.in[i];
    if (toy.intact) warp_barrier();
    toy.out[i] = shared_floats()[i ^ 1];
}

void warp_barrier_for_barrier(const Toy& toy) {  // warps do not meet there
    const int i = thread_index();
    shared_floats()[i] = toy.in[i];
    if (toy.intact)
        barrier();
    else
        warp_barrier();
    toy.out[i] = shared_floats()[255 - i];
}

void blocks_write_the_same(const Toy& toy) {
    const int64_t i = toy.intact ? block_index() * 256 + thread_index() : thread_index();
    toy.out[i % 512] = toy.in[thread_index()];
}

void sum_without_atomics(const Toy& toy) {
    if (toy.intact)
        add_atomically(toy.out, 1);
    else
        toy.out[0] += 1;
}

void read_while_others_add(const Toy& toy) {
    add_atomically(toy.out, 1);
    if (!toy.intact) toy.out[1 + thread_index()] = toy.out[0];
}

void missing_wait(const Toy& toy) {
    const int i = thread_index();
    if (i < 64) copy_async(shared_floats() + 4 * i, toy.in + 4 * i, true);
    commit_copies();
    if (toy.intact) wait_copies<0>();
    barrier();
    toy.out[i] = shared_floats()[i];
}

void wait_for_too_few(const Toy& toy) {  // two batches, of which the second is read
    const int i = thread_index();
    copy_async(shared_floats() + 4 * i, toy.in, i % 2 == 0);
    commit_copies();
    copy_async(shared_floats() + 1024 + 4 * i, toy.in, true);
    commit_copies();
    if (toy.intact)
        wait_copies<0>();
    else
        wait_copies<1>();
    toy.out[i] = shared_floats()[1024 + 4 * i];
}

void missing_barrier_after_wait(const Toy& toy) {  // only this thread's own copies are there
    const int i = thread_index();
    if (i < 64) copy_async(shared_floats() + 4 * i, toy.in + 4 * i, true);
    commit_copies();
    wait_copies<0>();
    if (toy.intact) barrier();
    toy.out[i] = shared_floats()[i];
}

void some_return_early(const Toy& toy) {
    if (!toy.intact && thread_index() >= 128) return;
    barrier();
}

void lane_stays_away(const Toy& toy) {
    float sum = toy.in[thread_index()];
    if (toy.intact || thread_index() != 40)
        for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
    toy.out[thread_index()] = sum;
}

void lanes_at_different_places(const Toy& toy) {
    if (toy.intact || thread_index() % 2 == 0)
        warp_barrier();
    else
        toy.out[0] = shuffle_xor(1, 1);
}

void constant_is_written(const Toy& toy) {  // by the same thread, in order
    const int i = thread_index();
    if (toy.intact)
        toy.out[4 * i] = load<float, 4>(toy.out + 4 * i).x[0];
    else
        toy.out[4 * i] = load_once<float, 4>(toy.out + 4 * i).x[0];
}

void misaligned_load(const Toy& toy) {
    const float* address = toy.in + (toy.intact ? 4 : 3);
    toy.out[thread_index()] = load<float, 4>(address).x[0];
}

void misaligned_copy(const Toy& toy) {
    copy_async(shared_floats() + 4 * thread_index() + (toy.intact ? 0 : 1), toy.in, true);
}

void write_beside_shared_memory(const Toy& toy) {
    if (thread_index() == 0) shared_floats()[toy.intact ? 2047 : 2048] = 1;
}

void read_of_what_was_not_written(const Toy& toy) {  // no error, but NaN
    if (toy.intact) shared_floats()[thread_index()] = 0;
    toy.out[thread_index()] = shared_floats()[thread_index()];
}

void nothing(const Toy&) {}

// in: A (16, 16), then B (16, 8); out: D (16, 8), which their product is added to.
void multiply(const Toy& toy) {
    const int i = thread_index() % 32 / 4, j = thread_index() % 4;
    const float *A = toy.in, *B = toy.in + 16 * 16;
    uint32_t a[4], b[2];
    for (int half = 0; half < 2; ++half) {
        const int k = 8 * half + 2 * j;
        a[2 * half] = pack_bfloat16(A[16 * i + k], A[16 * i + k + 1]);
        a[2 * half + 1] = pack_bfloat16(A[16 * (i + 8) + k], A[16 * (i + 8) + k + 1]);
        b[half] = pack_bfloat16(B[8 * k + i], B[8 * (k + 1) + i]);
    }
    float* D[4] = {toy.out + 8 * i + 2 * j, toy.out + 8 * i + 2 * j + 1, toy.out + 8 * (i + 8) + 2 * j,
                   toy.out + 8 * (i + 8) + 2 * j + 1};
    float d[4] = {*D[0], *D[1], *D[2], *D[3]};
    if (toy.intact) {
        multiply_k16(d, a, b);
    } else {  // the same in two steps
        multiply_k8(d, {a[0], a[1]}, b[0]);
        multiply_k8(d, {a[2], a[3]}, b[1]);
    }
    for (int element = 0; element < 4; ++element) *D[element] = d[element];
}

// in: X (8, 8); out: its transpose.
void transpose(const Toy& toy) {
    const int i = thread_index() % 32 / 4, j = thread_index() % 4;
    const uint32_t got = transpose_8x8(pack_bfloat16(toy.in[8 * i + 2 * j], toy.in[8 * i + 2 * j + 1]));
    toy.out[8 * i + 2 * j] = to_float(Bfloat16{uint16_t(got)});
    toy.out[8 * i + 2 * j + 1] = to_float(Bfloat16{uint16_t(got >> 16)});
}

struct Kernel {
    const char* name;
    void (*kernel)(const Toy&);
    int64_t blocks = 1;
    int threads = 256, shared_bytes = 8192;
};

const Kernel kernels[] = {
    {"missing barrier", missing_barrier},
    {"missing second barrier", missing_second_barrier},
    {"missing warp barrier", missing_warp_barrier},
    {"warp barrier for barrier", warp_barrier_for_barrier},
    {"blocks write the same", blocks_write_the_same, 2},
    {"sum without atomics", sum_without_atomics, 2},
    {"read while others add", read_while_others_add},
    {"missing wait", missing_wait},
    {"wait for too few", wait_for_too_few},
    {"missing barrier after wait", missing_barrier_after_wait},
    {"some return early", some_return_early},
    {"lane stays away", lane_stays_away},
    {"lanes at different places", lanes_at_different_places},
    {"constant is written", constant_is_written},
    {"misaligned load", misaligned_load},
    {"misaligned copy", misaligned_copy},
    {"write beside shared memory", write_beside_shared_memory},
    {"read of what was not written", read_of_what_was_not_written},
    {"no blocks", nothing, 0},
    {"too many threads", nothing, 1, 2048},
    {"too much shared memory", nothing, 1, 256, 120 << 10},
    {"multiply", multiply, 1, 32},
    {"transpose", transpose, 1, 32},
};

std::string message;

}  // namespace

extern "C" {

// What went wrong, nothing if all went well.
[[gnu::visibility("default")]] const char* run_toy(const char* name, const float* in, float* out, bool intact) {
    message = "no such kernel";
    for (const Kernel& x : kernels)
        if (x.name == std::string(name)) {
            message.clear();
            try {
                launch(x.kernel, x.blocks, x.threads, x.shared_bytes, nullptr, Toy{in, out, intact});
            } catch (const std::runtime_error& error) {
                message = error.what();
            }
        }
    return message.c_str();
}

[[gnu::visibility("default")]] void to_float16(const float* in, uint16_t* out, int count) {
    for (int k = 0; k < count; ++k) out[k] = from_float<Float16>(in[k]).bits;
}
[[gnu::visibility("default")]] void of_float16(const uint16_t* in, float* out, int count) {
    for (int k = 0; k < count; ++k) out[k] = to_float(Float16{in[k]});
}
[[gnu::visibility("default")]] void to_bfloat16(const float* in, uint16_t* out, int count) {
    for (int k = 0; k < count; ++k) out[k] = from_float<Bfloat16>(in[k]).bits;
}
[[gnu::visibility("default")]] void of_bfloat16(const uint16_t* in, float* out, int count) {
    for (int k = 0; k < count; ++k) out[k] = to_float(Bfloat16{in[k]});
}
}

}  // namespace projkern::cuda
