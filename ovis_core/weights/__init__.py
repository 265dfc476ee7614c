"""From a path to checked weights: files, their config and layout, lazy tensors, precision, conversion, download."""
