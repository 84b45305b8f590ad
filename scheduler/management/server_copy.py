"""What the server has, by what this leader wrote, and what of the fleet is still to be written.

Pure: no server, no clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from scheduler.management.fleet import SERVING, NodeState, capacity_of
from scheduler.management.pools import PoolDocument
from scheduler.management.publication import FleetView, Stored
from scheduler.protocol.messages import CapacityItem
from scheduler.protocol.snapshot import Delta


class ServerCopy:
    """A new one is made with each take-over. Only the methods here change it.

    Args: version, the highest that was published; view, what is published; announced, capacities that are no news;
    missing, configured pools that the server has lost.

    version: the highest that was used, even if what came of it is not known.
    view: what is published.
    stored: how it is published, as a whole and by deltas.
    capacities: node -> what was written of it.
    missing: pools whose documents are to be written again, None for one that is to be removed.
    withheld: nodes of which nothing is written yet, because more may be to be heard of them.
    """

    def __init__(
        self,
        version: int = 0,
        view: FleetView | None = None,
        announced: Mapping[str, CapacityItem] | None = None,
        missing: Mapping[str, PoolDocument] | None = None,
    ) -> None:
        self.version = version
        self.view = view or FleetView()
        self.stored = Stored()
        self.capacities: dict[str, CapacityItem] = {}
        self.missing: dict[str, PoolDocument | None] = dict(missing or {})
        self.withheld: frozenset[str] = frozenset()
        self._announced: dict[str, CapacityItem] = dict(announced or {})
        self._unwritten: set[str] = set()
        self._unpublished: set[str] = set()

    # ---- capacities ----

    def changed(self, nodes: Iterable[str]) -> None:
        """These nodes are to be written and to be published."""
        self._unwritten.update(nodes)
        self._unpublished.update(nodes)

    def other_than_written(self, nodes: Mapping[str, NodeState]) -> set[str]:
        """The changed nodes whose capacity is not the one that was written."""
        names = (self._unwritten | self._unpublished) & nodes.keys()
        return {name for name in names if self.capacities.get(name) != capacity_of(nodes[name])}

    def withhold(self, nodes: Iterable[str]) -> None:
        """Nothing of these nodes is written or published in this step."""
        self.withheld = frozenset(nodes)

    def capacities_to_write(self, nodes: Mapping[str, NodeState]) -> list[CapacityItem]:
        """What differs from what was written, by node."""
        names = [name for name in sorted(self._unwritten - self.withheld) if name in nodes]
        items = [capacity_of(nodes[name]) for name in names]
        return [item for item in items if self.capacities.get(item.node) != item]

    def wrote(self, item: CapacityItem) -> CapacityItem | None:
        """A capacity was written. Returns: what was announced of the node before."""
        self.capacities[item.node] = item
        before, self._announced[item.node] = self._announced.get(item.node), item
        return before

    def wrote_all(self, refused: Iterable[str], left: Collection[str]) -> list[str]:
        """All capacities were written, except those of nodes that were refused. Nodes that left are forgotten.

        Returns: the nodes that left and had been announced.
        """
        self._unwritten = {*refused, *self.withheld}
        self._unpublished.update(left)
        for name in left:
            self.capacities.pop(name, None)
        return [name for name in sorted(left) if self._announced.pop(name, None) is not None]

    def lost_capacities(self, stored: Mapping[str, CapacityItem]) -> tuple[list[str], list[str]]:
        """Compare with the capacities that the server has.

        Returns: nodes whose capacity is lost; and nodes without slots that have none stored: they have left, unless
        they hold something.
        """
        lost = [
            name
            for name, item in self.capacities.items()
            if stored.get(name) != item and (name in stored or item.reason in SERVING)
        ]
        return lost, [name for name in self.capacities if name not in stored and name not in lost]

    def write_again(self, nodes: Iterable[str]) -> None:
        """The capacities of these nodes are lost."""
        for name in nodes:
            del self.capacities[name]
            self._unwritten.add(name)

    def keep_only(self, nodes: Collection[str]) -> None:
        """Forget nodes that the fleet has forgotten."""
        self.capacities = {name: item for name, item in self.capacities.items() if name in nodes}
        self._announced = {name: item for name, item in self._announced.items() if name in nodes}

    @property
    def serving(self) -> int:
        """How many nodes have slots."""
        return sum(item.reason in SERVING for item in self.capacities.values())

    # ---- the snapshot ----

    def to_publish(self, changed: Iterable[str]) -> set[str]:
        """The nodes of which something may be new. changed: beside those that were noted."""
        return {*self._unpublished, *changed} - self.withheld

    def sending(self, delta: Delta) -> None:
        """A version is used up, even if what comes of it is never known: another view has another one."""
        self.version = delta.version

    def published(self, view: FleetView, stored: Stored) -> None:
        """A view, and how it is stored, was published."""
        self.view, self.stored = view, stored
        self._unpublished = set(self.withheld)

    def publish_again(self, nodes: Iterable[str], missing: Mapping[str, PoolDocument | None]) -> None:
        """What is published is lost: the whole is to be published, with these pools."""
        self.view, self.stored, self.missing = FleetView(), Stored(), dict(missing)
        self._unpublished.update(nodes)

    def wrote_configuration(self) -> None:
        """The pools that were missing are written."""
        self.missing = {}
