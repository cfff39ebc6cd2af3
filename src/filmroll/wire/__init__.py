"""What crosses between processes: descriptors and references, generate requests and answers, training samples.

Nothing else crosses. Imports only image and errors; holds no tensors and opens no files."""
