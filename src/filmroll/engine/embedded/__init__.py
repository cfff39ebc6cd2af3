"""An engine of our own: a transformers model that runs in this process and speaks the generate protocol.

A request comes in over HTTP (`server`), its images are made ready (`engine.images`), it waits for the model thread
(`engine`, `loop`) and decodes together with others (`batch`, `sampling`).

It is no toy vLLM: one model, one thread, no paging, no prefix cache. It is the default where there is no accelerator,
and the oracle that other engines are compared with in tests.
"""
