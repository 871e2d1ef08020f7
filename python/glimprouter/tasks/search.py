"""A way through a branching graph: a step's first token decides, the rest of it is copied."""

from __future__ import annotations

import itertools
import random
import re

from glimprouter.tasks.base import Problem
from glimprouter.tasks.generated import Chain, GeneratedTask

NODES = 10  # named 0 to 9
STEP = re.compile(r"(?:Wait,)?(\d) (?:leads to \d(?:,\d)*|leads nowhere|is the goal)\.")

Edges = dict[str, str]  # the nodes behind each node, in the order of the prompt


class SearchChain(Chain):
    """Where a chain stands: at a node of the graph."""

    def __init__(self, start: str, goal: str, edges: Edges) -> None:
        """Starts before the first node."""
        self.goal = goal
        self.edges = edges
        self.candidates = start  # the nodes that may come next
        self.done = False
        parents = {child: node for node, children in edges.items() for child in children}
        self.way = {goal}
        while start not in self.way:
            goal = parents[goal]
            self.way.add(goal)

    def describe(self, node: str) -> str:
        """The step that goes to a node."""
        if node == self.goal:
            return f"{node} is the goal."
        children = self.edges.get(node)
        return f"{node} leads to {','.join(children)}." if children else f"{node} leads nowhere."

    def next_step(self) -> str | None:
        """The one right next step; None behind the last and where no way leads to the goal."""
        right = [node for node in self.candidates if node in self.way]
        return self.describe(right[0]) if right and not self.done else None

    def take(self, text: str) -> bool:
        """Moves to the node that a step names."""
        match = STEP.fullmatch(text)
        if match is None or self.done or match[1] not in self.candidates:
            return False
        self.candidates = self.edges.get(match[1], "")
        self.done = match[1] == self.goal
        return True


def random_tree(generator: random.Random, moves: int, nodes: int) -> tuple[list[str], Edges]:
    """A way of ``moves`` moves with dead ends of any depth beside it, at most two ways on a node.

    Returns:
        The nodes of the way, and the edges in random order.
    """
    names = [str(name) for name in generator.sample(range(NODES), nodes)]
    way, others = names[: moves + 1], names[moves + 1 :]
    edges: dict[str, list[str]] = {a: [b] for a, b in itertools.pairwise(way)}
    open_nodes = way[:-1]  # those that take one more dead end
    for name in others:
        parent = generator.choice(open_nodes)
        edges.setdefault(parent, []).append(name)
        open_nodes.remove(parent)
        open_nodes.append(name)
    for children in edges.values():
        generator.shuffle(children)
    sources = list(edges)
    generator.shuffle(sources)
    return way, {source: "".join(edges[source]) for source in sources}


class Search(GeneratedTask):
    """Find the one way from a node to another in a small tree.

    Each step names a node and copies what it leads to. Which of two nodes comes next is the only
    hard question: dead ends must be seen from their beginning.
    """

    name = "search"

    def draw(self, generator: random.Random, short: bool = False) -> Problem:
        """Three or four moves among eight to ten nodes; two among six if short."""
        moves, nodes = (2, 6) if short else (generator.randint(3, 4), generator.randint(8, NODES))
        way, edges = random_tree(generator, moves, nodes)
        listed = ",".join(f"{source}>{children}" for source, children in edges.items())
        question = f"{way[0]} to {way[-1]}: {listed}"
        return Problem(question, f"Path {question}", "".join(way))

    def chain(self, problem: Problem) -> SearchChain:
        """The oracle, before the first step."""
        ends, _, listed = problem.key.partition(": ")
        edges = dict(part.split(">") for part in listed.split(","))
        return SearchChain(ends[0], ends[-1], edges)
