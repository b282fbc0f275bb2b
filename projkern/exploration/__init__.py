"""Images that trained models draw: in one picture, or on a page with sliders for t."""
