"""Playing episodes: environments, the client of an engine, the trajectory graph, the worker that ties them.

The writers' wing: what leaves here are tokens and descriptors."""
