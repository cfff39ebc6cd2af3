"""Trajectories: a graph of nodes, each with its own tokens and images and nothing of its ancestors'.

Memory and bytes grow with new tokens and distinct images; a prompt is put together when it is
needed. Tokens are kept logical, one pad per image: an image of a thousand tokens costs one number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from filmroll.errors import PrefixError
from filmroll.wire.arrays import Floats, Ints
from filmroll.wire.descriptor import ImageDescriptor

ROOT = -1


class Node(msgspec.Struct, frozen=True):
    """What one message or one completion adds to its parent.

    N = the node's own logical tokens. `images` index the trajectory's table, in the order of the
    pads among the tokens. A sampled node has a logprob for each token, and the temperature and
    policy version under which it was sampled.
    """

    parent: int
    token_ids: Ints
    images: tuple[int, ...] = ()
    logprobs: Floats | None = None
    temperature: float = 1.0
    version: int = -1
    finish_reason: str = ""

    @property
    def sampled(self) -> bool:
        return self.logprobs is not None


class Trajectory(msgspec.Struct):
    """All that was said and seen in one rollout. A branch is a path from the root to a leaf."""

    name: str
    pad: int
    images: list[ImageDescriptor] = []
    nodes: list[Node] = []
    reward: float = 0.0
    metrics: dict[str, float] = {}
    expected: str = ""
    answer: str = ""

    def add_prompt(self, parent: int, token_ids: Sequence[int], images: Sequence[ImageDescriptor]) -> int:
        """Append a node of tokens that were given, not sampled; returns its number."""
        tokens = np.asarray(token_ids, np.int32)
        if int(np.count_nonzero(tokens == self.pad)) != len(images):
            raise PrefixError(f"the node's tokens do not hold one pad for each of its {len(images)} images")
        return self._add(Node(parent, tokens, tuple(self._table_index(image) for image in images)))

    def add_sampled(
        self,
        parent: int,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        *,
        temperature: float,
        version: int,
        finish_reason: str,
    ) -> int:
        """Append a completion as the engine sampled it."""
        node = Node(
            parent,
            np.asarray(token_ids, np.int32),
            logprobs=np.asarray(logprobs, np.float32),
            temperature=temperature,
            version=version,
            finish_reason=finish_reason,
        )
        return self._add(node)

    def leaves(self) -> list[int]:
        parents = {node.parent for node in self.nodes}
        return [index for index in range(len(self.nodes)) if index not in parents]

    def branch(self, leaf: int) -> list[Node]:
        """The nodes from the root to `leaf`."""
        path = []
        while leaf != ROOT:
            path.append(self.nodes[leaf])
            leaf = self.nodes[leaf].parent
        return path[::-1]

    def branch_indices(self, leaf: int) -> Iterator[int]:
        """The numbers of the same nodes, leaf first."""
        while leaf != ROOT:
            yield leaf
            leaf = self.nodes[leaf].parent

    def branch_images(self, path: Sequence[Node]) -> list[ImageDescriptor]:
        return [self.images[index] for node in path for index in node.images]

    def branch_tokens(self, path: Sequence[Node]) -> Ints:
        """The logical tokens of a path."""
        parts = [node.token_ids for node in path]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def _add(self, node: Node) -> int:
        if not ROOT <= node.parent < len(self.nodes):
            raise PrefixError(f"there is no node {node.parent} to add to, the trajectory has {len(self.nodes)}")
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _table_index(self, image: ImageDescriptor) -> int:
        """Where the image stands in the table; a rollout has few distinct images, so a search will do."""
        try:
            return self.images.index(image)
        except ValueError:
            self.images.append(image)
            return len(self.images) - 1
