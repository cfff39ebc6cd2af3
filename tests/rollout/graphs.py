"""Random conversations with branches and compactions, and a plain model of them: each branch a list of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from filmroll.rollout.trajectory import ROOT, Trajectory, check_trajectory
from filmroll.wire.descriptor import ImageDescriptor

PAD = 99
WORDS = st.integers(1, 4)
"""Few words, so that conversations share prefixes by chance."""


class Step(NamedTuple):
    """One logical token: what it is, its image if it is a pad, and how it was sampled, if it was."""

    token: int
    image: ImageDescriptor | None = None
    logprob: float | None = None
    version: int = -1

    @property
    def looks(self) -> tuple[int, ImageDescriptor | None]:
        """What a model sees of it."""
        return self.token, self.image


Steps = tuple[Step, ...]


class Conversations(RuleBasedStateMachine):
    """Prompts and answers are appended anywhere, conversations rendered anew; always as the model says."""

    nodes = Bundle("nodes")
    content = st.lists(st.one_of(WORDS, WORDS, st.sampled_from("abc")), max_size=6)

    def __init__(self, images: Sequence[ImageDescriptor]) -> None:
        super().__init__()
        self.images = dict(zip("abc", images, strict=True))
        self.trajectory = Trajectory("t", PAD)
        self.said: dict[int, Steps] = {ROOT: ()}
        self.sampled = 0

    @initialize(target=nodes, content=content)
    def begin(self, content: list[int | str]) -> int:
        return self._conversation((Step(1), *self._shown(content)))

    @rule(target=nodes, parent=nodes, content=content)
    def show(self, parent: int, content: list[int | str]) -> int:
        steps = self._shown(content)
        return self._note(self.trajectory.add_prompt(parent, *_parts(steps)), self.said[parent] + steps, len(steps))

    @rule(target=nodes, parent=nodes, tokens=st.lists(WORDS, min_size=1, max_size=5), version=st.integers(0, 3))
    def answer(self, parent: int, tokens: list[int], version: int) -> int:
        steps = tuple(Step(token, None, -(token + version) / 8, version) for token in tokens)
        logprobs = [step.logprob for step in steps if step.logprob is not None]
        node = self.trajectory.add_sampled(
            parent, tokens, logprobs, temperature=0.5, version=version, finish_reason="stop"
        )
        self.sampled += len(tokens)
        return self._note(node, self.said[parent] + steps, len(steps))

    @rule(target=nodes, node=nodes, places=st.tuples(st.integers(0, 40), st.integers(0, 40)), content=content)
    def render_anew(self, node: int, places: tuple[int, int], content: list[int | str]) -> int:
        """Compaction: of what some branch said a stretch is dropped, and something follows."""
        said = self.said[node]
        first, last = sorted(place % (len(said) + 1) for place in places)
        left = tuple(Step(*step.looks) for step in said[:first] + said[last:])
        return self._conversation(left + self._shown(content))

    @rule(node=nodes, reward=st.none() | st.sampled_from([0.0, 0.25, 1.0]))
    def score(self, node: int, reward: float | None) -> None:
        self.trajectory.score(node, reward)

    @invariant()
    def law_prefix(self) -> None:
        """Whatever is added, what was said up to a node stays what it was, sampled tokens included."""
        for node, said in self.said.items():
            assert self.steps(node) == said

    @invariant()
    def images_are_kept_once(self) -> None:
        assert len(self.trajectory.images) == len({image.identity for image in self.trajectory.images}) <= 3

    def teardown(self) -> None:
        check_trajectory(self.trajectory)
        self.finished(self.trajectory)

    def finished(self, trajectory: Trajectory) -> None:
        """What else must hold of a whole trajectory."""

    def steps(self, node: int) -> Steps:
        """What the trajectory says up to a node, in the model's words."""
        steps: list[Step] = []
        for part in self.trajectory.branch(node) if node != ROOT else ():
            images = iter(part.images)
            for place, token in enumerate(part.token_ids.tolist()):
                image = self.trajectory.images[next(images)] if token == PAD else None
                logprob = None if part.logprobs is None else float(part.logprobs[place])
                steps.append(Step(token, image, logprob, part.version))
        return tuple(steps)

    def _shown(self, content: list[int | str]) -> Steps:
        return tuple(Step(PAD, self.images[one]) if isinstance(one, str) else Step(one) for one in content)

    def _conversation(self, steps: Steps) -> int:
        """Added as it was rendered: what it shares with a branch was said, and maybe sampled, there."""
        shared = max(_shared(steps, said) for said in self.said.values())
        node = self.trajectory.add_conversation(*_parts(steps))
        there = self.steps(node)
        assert [step.looks for step in there] == [step.looks for step in steps]
        assert any(there[:shared] == said[:shared] for said in self.said.values())
        assert all(step.logprob is None for step in there[shared:])
        return self._note(node, there, len(steps) - shared)

    def _note(self, node: int, said: Steps, new: int) -> int:
        """Law Linear: of a conversation that is added, only what is new is kept."""
        kept = sum(len(one.token_ids) for one in self.trajectory.nodes)
        assert kept == self.kept + new
        self.kept = kept
        self.said[node] = said
        return node

    kept = 0


def _parts(steps: Steps) -> tuple[list[int], list[ImageDescriptor]]:
    return [step.token for step in steps], [step.image for step in steps if step.image is not None]


def _shared(one: Steps, other: Steps) -> int:
    """The length of the prefix of the same tokens and images."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left.looks != right.looks:
            return place
    return min(len(one), len(other))
