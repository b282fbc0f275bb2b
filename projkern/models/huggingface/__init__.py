"""Models to and from other libraries: Hugging Face's GPT-2 format both ways, ImageGPT in, ONNX out."""
