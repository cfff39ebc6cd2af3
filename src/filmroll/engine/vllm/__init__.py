"""Real vLLM takes references: a plugin for its own server, found through the entry point `vllm.general_plugins`.

A request of `/inference/v1/generate` whose `features.kwargs_data` holds `mmraw:` references comes in
through `plugin`; `references` checks it, has its images developed off the event loop and gives vLLM
the model's own keyword arguments under identities that nobody else can name (`identity`). `inside`
is all that is known here of vLLM's insides. Where the images lie is told by `--additional-config`
(`settings`).

vllm and torch are imported where they are used. The other rooms import only how a server is started
(`launch`, `settings`).
"""
