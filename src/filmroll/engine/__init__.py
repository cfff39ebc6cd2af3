"""Inference: an embedded engine that runs a transformers model and speaks the generate protocol.

The readers' wing. A request comes in over HTTP (`server`), its references become verified pixels
(`resolve`), it waits for the model thread (`embedded`), decodes together with others (`batch`,
`sampling`) and goes back as tokens with their logprobs. The trainer's new weights come through a
folder (`weights`).

It is no toy vLLM: one model, one thread, no paging, no prefix cache. It is the default where there
is no accelerator, and the oracle that other engines are compared with in tests.
"""
