"""Vectors of queries, keys, values and heads' outputs: lengths, directions, spectra and subspaces."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from lightning_geo.functional import masked_mean, principal_subspace
from lightning_geo.functional.head import similarity_of_blocks
from lightning_geo.kernels import HeadMoments, head_moments, join_heads
from lightning_geo.measurement.bases import compare_bases, stacked_bases
from lightning_geo.measurement.batches import BatchEntry, LayerBatches, limit_of
from lightning_geo.measurement.collectors.collector import Collector
from lightning_geo.measurement.decomposition import Covariances, head_covariances, principal_subspaces
from lightning_geo.measurement.derived_stack import DerivedStack
from lightning_geo.measurement.head_sketch import add_sketches
from lightning_geo.measurement.joint_covariances import joint_covariances
from lightning_geo.measurement.sums import LayerSums, add_moments, add_values, repeated, taken
from lightning_geo.measurement.waiting_moments import RoleVectors, WaitingMoments
from lightning_geo.measurement.waiting_results import WaitingResults
from lightning_geo.metrics.foreign import FOREIGN
from lightning_geo.metrics.registry import reads_of
from lightning_geo.metrics.selection import spec_of
from lightning_geo.metrics.spec import ROLES
from lightning_geo.observe import AttentionCall, CallKey

__all__ = ["RoleMoments"]

#: Largest width for which the d×d second moment of all heads' outputs is kept; above, a sketch of them is.
_JOINT_MAX_WIDTH = 1024

_QUERY_AND_KEY = ("query.directions", "query.tokens", "key.directions", "key.tokens")
_OUTPUT = ("output.directions", "output.tokens", "output.directed")


class RoleMoments(Collector):
    """Second moments of each role's vectors, their lengths and where they point.

    Args:
        metrics: Stored names of the metrics to measure.
        seed: Which signs the sketches of wide layers get; other on ranks with other inputs.
        calls: How many calls are expected.
    """

    offers = frozenset(
        {
            "query.length", "key.length", *_QUERY_AND_KEY, *_OUTPUT,
            "eigenvalues", "basis", "basis.baseline", "basis.previous", "basis.query", "basis.key",
            "block_norms", "traces",
        }
    )  # fmt: skip

    def __init__(self, metrics: tuple[str, ...], seed: str = "", calls: int | None = None) -> None:
        super().__init__(metrics)
        self._seed = seed
        self._generators: dict[CallKey, torch.Generator] = {}
        reads = {name: frozenset(reads_of(name)) for name in metrics}
        self._lengths = {role: self._reading({f"{role}.length"}, reads) for role in ("query", "key")}
        self._pairs = self._reading({"query.directions"}, reads)
        self._cones = self._reading({"output.directions"}, reads)
        self._spectral = self._reading({"eigenvalues"}, reads)
        self._joint = self._reading({"block_norms", "traces"}, reads)
        self._compared = self._reading({"basis", "basis.query"}, reads)
        roles = {name.rpartition(".")[2] for name in (*self._spectral, *self._compared)}
        if self._reading({"basis.query"}, reads):
            roles |= {"query", "key"}
        self._roles = [role for role in ROLES if role in roles]
        self._batches = LayerBatches(self._add, axis=2, calls=calls)
        self._moments = WaitingResults(self._add_moments)
        self._waiting: list[tuple[LayerSums, dict[str, tuple[Tensor, Tensor]]]] = []

    @staticmethod
    def _reading(quantities: set[str], reads: dict[str, frozenset[str]]) -> tuple[str, ...]:
        return tuple(name for name, read in reads.items() if read & quantities)

    def attention(self, layer: LayerSums, key: CallKey, call: AttentionCall) -> None:
        output = call.output
        parts = call.slice.count
        width = output.shape[1] * output.shape[3] * parts if self._joint and output is not None else 0
        joint = 0 < width <= _JOINT_MAX_WIDTH and parts == 1
        directions: dict[str, tuple[Tensor, Tensor]] = {}
        vectors = {"query": call.query, "key": call.key, "value": call.value, "output": output}
        gathered = []
        for role, x in vectors.items():
            requested = self._requested(role, joint=joint)
            if role == "output" and width > _JOINT_MAX_WIDTH:
                requested |= {"scatter", "sketch"}
            if x is None or not requested:
                continue
            mask = call.query_mask if role in ("query", "output") else call.key_mask
            owner = RoleVectors(layer, role, x.shape[1], requested, key, directions)
            # tokens first: models project to [B, N, H * D], and reading against that order is slow
            gathered.append(BatchEntry(owner, {"x": x.transpose(1, 2)}, {"mask": mask}, times=len(vectors)))
        if joint and output is not None:  # one matrix for all heads: its blocks serve role output too
            owner = RoleVectors(layer, "heads", 1, frozenset({"scatter"}), key, {})
            together = output.transpose(1, 2).flatten(2)[:, :, None]
            gathered.append(BatchEntry(owner, {"x": together}, {"mask": call.query_mask}))
        self._batches.add(*gathered)
        if self._pairs and call.query is not None and call.key is not None:
            self._waiting.append((layer, directions))

    def _requested(self, role: str, *, joint: bool) -> frozenset[str]:
        """The moments of a role that are needed."""
        requested = {"scatter"} if role in self._roles and not (joint and role == "output") else set()
        if role in ("query", "key"):
            requested |= {"norm"} if self._lengths[role] else set()
            requested |= {"directions"} if self._pairs else set()
        if role == "output" and self._cones:
            requested.add("directions")
        return frozenset(requested)

    def _add(
        self, owners: list[RoleVectors], tensors: dict[str, Tensor], shared: dict[str, Tensor | None]
    ) -> None:
        x = tensors["x"]
        requested = frozenset().union(*(owner.requested for owner in owners))
        mask = None if shared["mask"] is None else shared["mask"].expand(x.shape[:2])
        moments = head_moments(x.movedim(1, 3), mask, requested - {"sketch"})
        sketched = [i for i, owner in enumerate(owners) if "sketch" in owner.requested]
        if sketched:
            layers = [owners[i].layer for i in sketched]
            signs = [self._signs(owners[i].key, x.device) for i in sketched]
            add_sketches(layers, taken(x, sketched, 2).flatten(3), shared["mask"], signs)
        self._moments.add(WaitingMoments(owners, moments), limit=limit_of(x.device))

    def _add_moments(self, calls: list[WaitingMoments]) -> None:
        """Add up the moments of calls that are alike."""
        owners = [owner for call in calls for owner in call.owners]
        moments = join_heads([call.moments for call in calls])
        count, heads = len(owners), owners[0].heads
        scattered = [i for i, owner in enumerate(owners) if "scatter" in owner.requested]
        if scattered:
            assert moments.count is not None
            assert moments.mean is not None
            assert moments.scatter is not None
            mean, scatter = (m.unflatten(0, (count, heads)) for m in (moments.mean, moments.scatter))
            if len(scattered) < count:
                mean, scatter = (torch.stack([m[i] for i in scattered]) for m in (mean, scatter))
            layers, roles = ([getattr(owners[i], field) for i in scattered] for field in ("layer", "role"))
            add_moments(layers, roles, moments.count, mean, scatter)
        self._add_lengths(owners, moments, heads)
        self._add_directions(owners, moments, heads)

    def _signs(self, key: CallKey, device: torch.device) -> torch.Generator:
        """The source of a layer's signs: the same at every sample of a fixed probe, others on every rank."""
        if key not in self._generators:
            seed = zlib.crc32(f"{self._seed} {key} signs".encode())
            self._generators[key] = torch.Generator(device).manual_seed(seed)
        return self._generators[key]

    def _add_lengths(self, owners: list[RoleVectors], moments: HeadMoments, heads: int) -> None:
        if moments.norm is None:
            return
        # [L, B, h]
        lengths = masked_mean(moments.norm, moments.valid[:, None]).unflatten(1, (len(owners), heads))
        lengths = lengths.transpose(0, 1)
        for role, names in self._lengths.items():
            places = [i for i, owner in enumerate(owners) if owner.role == role]
            if places and names:
                layers = [owners[i].layer for i in places]
                values = taken(lengths, places)
                # grouped queries share a key's numbers
                values = repeated(values, layers[0].heads // heads, -1)
                quantities = {f"{role}.length": values}
                by_name = [self.value(name, quantities, values.shape) for name in names]
                add_values(layers, role, names, torch.stack(by_name, 1))

    def _add_directions(self, owners: list[RoleVectors], moments: HeadMoments, heads: int) -> None:
        if moments.directions is None or moments.directed is None:
            return
        shape = (len(owners), heads)
        directions = moments.directions.unflatten(1, shape).transpose(0, 1)  # [L, B, h, D]
        directed = moments.directed.unflatten(1, shape).transpose(0, 1)  # [L, B, h]
        tokens = moments.valid.sum(-1)[:, None].expand(-1, heads)  # [B, h]
        for i, owner in enumerate(owners):
            owner.directions[owner.role] = directions[i], tokens
        places = [i for i, owner in enumerate(owners) if owner.role == "output"]
        if places and self._cones:
            quantities = {
                "output.directions": taken(directions, places),
                "output.tokens": tokens.expand(len(places), -1, -1),
                "output.directed": taken(directed, places),
            }
            leading = quantities["output.directions"].shape[:-1]
            values = [self.value(name, quantities, leading) for name in self._cones]
            add_values([owners[i].layer for i in places], "head", self._cones, torch.stack(values, 1))

    def settle(self) -> None:
        self._batches.flush()
        self._moments.finish()
        waiting, self._waiting = self._waiting, []
        groups: dict[tuple[object, ...], list[tuple[LayerSums, dict[str, tuple[Tensor, Tensor]]]]] = {}
        for layer, directions in waiting:
            shapes = (directions[role][0].shape for role in ("query", "key"))
            groups.setdefault(tuple(shapes), []).append((layer, directions))
        for group in groups.values():
            quantities = {
                f"{role}.{name}": torch.stack([directions[role][i] for _, directions in group])
                for role in ("query", "key")
                for i, name in enumerate(("directions", "tokens"))
            }
            shape = quantities["query.directions"].shape[:-1]
            values = [self.value(name, quantities, shape) for name in self._pairs]
            add_values([layer for layer, _ in group], "pair", self._pairs, torch.stack(values, 1))

    # -- metrics

    def derive(self, stack: DerivedStack) -> None:
        groups = [([("output", indices)], covariance) for indices, covariance in self._derive_joint(stack)]
        groups = [*head_covariances(stack, self._roles), *groups]
        entries, tensors = [of_roles for of_roles, _ in groups], [covariance for _, covariance in groups]
        moved = any(covariance.device.type != "cpu" for covariance in tensors)

        def derive(covariances: list[Tensor]) -> None:
            bases = self._derive_spectra(stack, list(zip(entries, covariances, strict=True)), moved)
            size, heads = len(stack.heads), max(stack.heads)
            stack.bases = {role: stacked_bases(parts, size, heads) for role, parts in bases.items()}
            compare_bases(stack, self._compared)

        # decompositions wait for a GPU at each matrix: the host does them, when all else is derived
        stack.deferred.append((tensors, derive))
        stack.calls_others |= any(n.partition(".")[0] in FOREIGN for n in (*self._spectral, *self._compared))

    def _derive_joint(self, stack: DerivedStack) -> list[tuple[list[int], Tensor]]:
        """Compare the heads of a layer by the covariance of all their outputs; returns each head's own."""
        own, compared = joint_covariances(stack)
        for heads in compared:
            self._compare(stack, *heads)
        return own if "output" in self._roles else []

    def _compare(self, stack: DerivedStack, indices: list[int], norms: Tensor, traces: Tensor) -> None:
        """Add metrics of heads compared: norms [L, H, H] of blocks of the covariance, traces [L, H]."""
        quantities = {"block_norms": norms, "traces": traces}
        for name in self._joint:
            shape = norms.shape[: len(spec_of(name).axes)]
            stack.add(name, indices, self.value(name, quantities, shape))
        stack.similarities.append((indices, similarity_of_blocks(norms)))

    def _derive_spectra(
        self,
        stack: DerivedStack,
        covariances: list[Covariances],
        moved: bool,
    ) -> dict[str, list[tuple[list[int], Tensor]]]:
        """Eigenvalue metrics, and top subspaces [L, H, D, r] by role; one decomposition per head size."""
        by_size: dict[int, list[Covariances]] = {}
        for group in covariances:
            by_size.setdefault(group[1].shape[-1], []).append(group)
        bases: dict[str, list[tuple[list[int], Tensor]]] = {}
        if not by_size:
            return bases
        rank = max(1, min(stack.rank, min(by_size) // 2))
        for groups in by_size.values():
            matrices = torch.cat([c.flatten(0, 1) for _, c in groups])
            values, vectors = (principal_subspaces if moved else principal_subspace)(matrices, rank)
            # all roles at once
            metrics = {spec_of(name).name: name for name in self._spectral}
            computed = {
                metric: self.value(name, {"eigenvalues": values}, values.shape[:-1])
                for metric, name in metrics.items()
            }
            start = 0
            for entries, covariance in groups:
                heads = covariance.shape[1]
                for role, indices in entries:
                    part = slice(start, start + len(indices) * heads)
                    start = part.stop
                    repeat = stack.heads[indices[0]] // heads  # grouped queries share a key's numbers
                    for name in (name for name in self._spectral if name.endswith(f".{role}")):
                        own = computed[spec_of(name).name][part].unflatten(0, (-1, heads))
                        stack.add(name, indices, repeated(own, repeat, 1))
                    basis = vectors[part].unflatten(0, (-1, heads))
                    bases.setdefault(role, []).append((indices, repeated(basis, repeat, 1)))
        return bases
