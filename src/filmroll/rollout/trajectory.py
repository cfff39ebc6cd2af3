"""Trajectories: a graph of nodes, each with its own tokens and images and nothing of its ancestors'.

Memory and bytes grow with new tokens and distinct images; a prompt is put together when it is
needed. Tokens are kept logical, one pad per image: an image of a thousand tokens costs one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import msgspec
import numpy as np

from filmroll.errors import PrefixError
from filmroll.wire.arrays import Floats, Ints
from filmroll.wire.descriptor import ImageDescriptor

ROOT = -1


class Node(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was shown, or what was sampled, after the parent's tokens.

    N = the node's own logical tokens. `images` index the trajectory's table, in the order of the
    pads among the tokens. A sampled node has a logprob for each token, and the temperature and
    policy version under which it was sampled. `reward` is that of the branch which ends here, where
    it has another than the whole rollout.
    """

    parent: int
    token_ids: Ints
    images: tuple[int, ...] = ()
    logprobs: Floats | None = None
    temperature: float = 1.0
    version: int = -1
    finish_reason: str = ""
    reward: float | None = None

    @property
    def sampled(self) -> bool:
        return self.logprobs is not None


class Trajectory(msgspec.Struct, dict=True):
    """All that was said and seen in one rollout. A branch is a path from a root to a leaf.

    A node's number stays its own whatever is added later, and means all tokens up to its end.
    """

    name: str
    pad: int
    images: list[ImageDescriptor] = []
    nodes: list[Node] = []
    reward: float = 0.0
    metrics: dict[str, float] = {}
    expected: str = ""
    answer: str = ""

    def add_prompt(self, parent: int, token_ids: Sequence[int] | Ints, images: Sequence[ImageDescriptor]) -> int:
        """Append a node of tokens that were given, not sampled; returns its number."""
        tokens, rows = self._given(token_ids, images)
        return self._add(Node(parent, tokens, rows))

    def add_conversation(self, token_ids: Sequence[int] | Ints, images: Sequence[ImageDescriptor]) -> int:
        """Append a conversation that was rendered from its beginning; returns the node where it ends.

        What it shares with what is there is found token by token and image by image, sampled tokens
        included, and not kept again. A node that it shares in part is parted at that place.
        """
        tokens, rows = self._given(token_ids, images)
        parent, within, shared = self._longest_shared(tokens, rows)
        if within:
            parent = self._part(parent, within)
        if shared == len(tokens) and parent != ROOT:
            return parent
        pads = int(np.count_nonzero(tokens[:shared] == self.pad))
        return self._add(Node(parent, tokens[shared:].copy(), rows[pads:]))

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
        """Append a completion as the engine sampled it; another one after the same parent is a branch."""
        node = Node(
            parent,
            np.asarray(token_ids, np.int32),
            logprobs=np.asarray(logprobs, np.float32),
            temperature=temperature,
            version=version,
            finish_reason=finish_reason,
        )
        _check_arrays(node, self.pad)
        return self._add(node)

    def score(self, leaf: int, reward: float | None) -> None:
        """Give the branch that ends at `leaf` a reward of its own, or the rollout's again."""
        self.nodes[leaf] = msgspec.structs.replace(self.nodes[leaf], reward=reward)

    def leaves(self) -> list[int]:
        parents = {node.parent for node in self.nodes}
        return [index for index in range(len(self.nodes)) if index not in parents]

    def path(self, leaf: int) -> list[int]:
        """The numbers of the nodes from the root to `leaf`."""
        path = []
        while leaf != ROOT:
            path.append(leaf)
            leaf = self.nodes[leaf].parent
        return path[::-1]

    def branch(self, leaf: int) -> list[Node]:
        """The nodes from the root to `leaf`."""
        return [self.nodes[index] for index in self.path(leaf)]

    def branch_images(self, path: Sequence[Node]) -> list[ImageDescriptor]:
        return [self.images[index] for node in path for index in node.images]

    def branch_tokens(self, path: Sequence[Node]) -> Ints:
        """The logical tokens of a path."""
        parts = [node.token_ids for node in path]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    @cached_property
    def _rows(self) -> dict[tuple[str, str], list[int]]:
        """Rows of the image table by what tells pixels apart. Not part of what travels."""
        rows: dict[tuple[str, str], list[int]] = {}
        for row, image in enumerate(self.images):
            rows.setdefault(image.identity, []).append(row)
        return rows

    @cached_property
    def _children(self) -> dict[int, list[int]]:
        """The nodes after each node. Not part of what travels."""
        children: dict[int, list[int]] = {}
        for index, node in enumerate(self.nodes):
            children.setdefault(node.parent, []).append(index)
        return children

    def _given(
        self, token_ids: Sequence[int] | Ints, images: Sequence[ImageDescriptor]
    ) -> tuple[Ints, tuple[int, ...]]:
        """Tokens as they are kept, and the rows of their images."""
        tokens = np.asarray(token_ids, np.int32)
        if int(np.count_nonzero(tokens == self.pad)) != len(images):
            raise PrefixError(f"the node's tokens do not hold one pad for each of its {len(images)} images")
        return tokens, tuple(self._row(image) for image in images)

    def _add(self, node: Node) -> int:
        if not ROOT <= node.parent < len(self.nodes):
            raise PrefixError(f"there is no node {node.parent} to add to, the trajectory has {len(self.nodes)}")
        index = len(self.nodes)
        self._children.setdefault(node.parent, []).append(index)
        self.nodes.append(node)
        return index

    def _row(self, image: ImageDescriptor) -> int:
        """Where the image stands in the table; it is appended if it is new."""
        rows = self._rows.setdefault(image.identity, [])
        for row in rows:
            if self.images[row] == image:
                return row
        rows.append(len(self.images))
        self.images.append(image)
        return rows[-1]

    def _longest_shared(self, tokens: Ints, rows: tuple[int, ...]) -> tuple[int, int, int]:
        """The node where the longest shared prefix ends, how far within it (0 for its end), and the prefix's length.

        Two completions of one prompt may begin with the same tokens, so every way is followed.
        """
        best, within, longest = ROOT, 0, 0
        pending = [(ROOT, 0, 0)]
        while pending:
            parent, start, seen = pending.pop()
            if start > longest:
                best, within, longest = parent, 0, start
            for child in self._children.get(parent, ()):
                node = self.nodes[child]
                same = _agreement(node, tokens[start:], rows[seen:], self.pad)
                if same == len(node.token_ids):
                    pending.append((child, start + same, seen + len(node.images)))
                elif start + same > longest:
                    best, within, longest = child, same, start + same
        return best, within, longest

    def _part(self, index: int, at: int) -> int:
        """Part a node after `at` tokens. The later part keeps its number; returns that of the earlier part."""
        node, head = self.nodes[index], len(self.nodes)
        pads = int(np.count_nonzero(node.token_ids[:at] == self.pad))
        logprobs = (None, None) if node.logprobs is None else (node.logprobs[:at], node.logprobs[at:])
        part = msgspec.structs.replace
        self.nodes.append(
            part(
                node,
                token_ids=node.token_ids[:at],
                images=node.images[:pads],
                logprobs=logprobs[0],
                finish_reason="",
                reward=None,
            )
        )
        self.nodes[index] = part(
            node, parent=head, token_ids=node.token_ids[at:], images=node.images[pads:], logprobs=logprobs[1]
        )
        siblings = self._children[node.parent]
        siblings[siblings.index(index)] = head
        self._children[head] = [index]
        return head


def check_trajectory(trajectory: Trajectory) -> Trajectory:
    """The same trajectory if its parts agree, else a PrefixError that names the node; for what was read from a file."""
    rooted: set[int] = {ROOT}
    for index, node in enumerate(trajectory.nodes):
        if not ROOT <= node.parent < len(trajectory.nodes):
            raise PrefixError(f"node {index}: its parent is {node.parent}, of {len(trajectory.nodes)} nodes")
        if any(not 0 <= row < len(trajectory.images) for row in node.images):
            raise PrefixError(f"node {index}: its images are {node.images}, the table has {len(trajectory.images)}")
        try:
            _check_arrays(node, trajectory.pad)
        except PrefixError as error:
            raise PrefixError(f"node {index}: {error.problem}") from None
        passed, at = [], index
        while at not in rooted:
            passed.append(at)
            at = trajectory.nodes[at].parent
            if len(passed) > len(trajectory.nodes) or not ROOT <= at < len(trajectory.nodes):
                raise PrefixError(f"node {index}: no root is above it")
        rooted.update(passed)
    return trajectory


def _check_arrays(node: Node, pad: int) -> None:
    """As many images as pads; a logprob for each sampled token, and no image among them."""
    pads = int(np.count_nonzero(node.token_ids == pad))
    if node.logprobs is not None and len(node.logprobs) != len(node.token_ids):
        raise PrefixError(f"{len(node.token_ids)} tokens were sampled with {len(node.logprobs)} logprobs")
    if node.sampled and pads:
        raise PrefixError("the completion contains an image placeholder, which nothing may sample")
    if pads != len(node.images):
        raise PrefixError(f"its tokens hold {pads} pads for {len(node.images)} images")


def _agreement(node: Node, tokens: Ints, rows: tuple[int, ...], pad: int) -> int:
    """How many of the node's tokens these begin with, their images being the same, too."""
    same = min(len(node.token_ids), len(tokens))
    differing = node.token_ids[:same] != tokens[:same]
    if differing.any():
        same = int(differing.argmax())
    if node.images:
        pads = np.flatnonzero(node.token_ids[:same] == pad)
        for place, mine, other in zip(pads, node.images, rows, strict=False):
            if mine != other:
                return int(place)
    return same
