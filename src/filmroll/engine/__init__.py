"""Inference on references: an engine of our own (`embedded`), and a plugin for real vLLM (`vllm`).

The readers' wing. Both make pixels of a request's references in the same rooms (`images`), answer in the same words
(`http`), count the same things (`statistics`) and take the trainer's new weights from the same folder (`weights`).
`chat` is OpenAI's endpoint on the embedded engine.
"""
