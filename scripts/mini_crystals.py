"""The crystals of the bundled DFT table: textbook nonmetals and their chemical substitutions.

Every candidate is a structure type filled with elements. Where its lattice constants are measured
and well known they are used as they are. All others (``needs_fit``) start from an estimate whose
size an energy-volume fit then replaces; their axial ratios and internal coordinates stay those of
the estimate, so they are crystals worth asking DFT about, not relaxed ground states.

``python scripts/make_mini.py --list`` prints the list.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import smact
from ase.data import atomic_numbers, covalent_radii
from numpy.typing import NDArray
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Element, Lattice, Structure

__all__ = ["EXCLUDED", "TYPES", "Candidate", "StructureType", "candidates", "prototypes"]

EXCLUDED = frozenset(
    "Cu Ar Po At Rn Fr Ra "
    "Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu "
    "Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr".split()
)
"""Elements without a pseudopotential or reference energy that fits the published labels."""

MAX_SITES = 8
PROTOTYPE_SOURCE = "AFLOW prototype (pymatgen)"

Vector = tuple[float, float, float]
Site = tuple[int, Vector]
"""Position of the element in the formula, and conventional fractional coordinates."""


@dataclass(frozen=True)
class Candidate:
    """One crystal to label.

    Attributes:
        name: Formula and structure type, unique.
        structure_type: Name of the structure type.
        lattice: Rows are the vectors of the primitive cell at scale 1, Å.
        frac_coords: Fractional coordinates of every site.
        species: Element symbol of every site.
        lattice_source: Where the lattice constants are from.
        needs_fit: Whether the size of the cell is only an estimate.
        parameters: Names and values of the free parameters of its structure type, at scale 1.
    """

    name: str
    structure_type: str
    lattice: tuple[Vector, ...]
    frac_coords: tuple[Vector, ...]
    species: tuple[str, ...]
    lattice_source: str
    needs_fit: bool
    parameters: tuple[tuple[str, float], ...] = ()

    def structure(self, scale: float = 1.0) -> Structure:
        """Return the crystal with all lattice vectors multiplied by ``scale``."""
        lattice = Lattice(scale * np.array(self.lattice))
        return Structure(lattice, list(self.species), [list(x) for x in self.frac_coords])

    def describe(self, scale: float = 1.0) -> str:
        """Return the free parameters as text, such as ``a = 3.25 Å, u = 0.382``."""
        return describe(self.parameters, scale)


def describe(parameters: Iterable[tuple[str, float]], scale: float = 1.0) -> str:
    """Return free parameters as text, the lengths among them multiplied by ``scale``."""
    return ", ".join(
        f"{name} = {round(scale * value, 4)} Å" if name in "abc" else f"{name} = {value}"
        for name, value in parameters
    )


# --------------------------------------------------------------------------- structure types

# Rows are primitive vectors in units of the conventional ones.
_P = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
_I = ((-0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.5, 0.5, -0.5))
_F = ((0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0))
_C = ((0.5, -0.5, 0.0), (0.5, 0.5, 0.0), (0.0, 0.0, 1.0))
_R = ((2 / 3, 1 / 3, 1 / 3), (-1 / 3, 1 / 3, 1 / 3), (-1 / 3, -2 / 3, 1 / 3))

_AXES = {"cubic": "a", "tetragonal": "ac", "hexagonal": "ac", "orthorhombic": "abc"}


@dataclass(frozen=True)
class StructureType:
    """How the sites of a structure type follow from its free parameters.

    Attributes:
        space_group: International number.
        system: Shape of the conventional cell: cubic, tetragonal, hexagonal or orthorhombic.
        sites: Gives the sites of one primitive cell for the internal parameters.
        internal: Names of the internal parameters.
        centring: Primitive vectors in units of the conventional ones.
        label: Name of the structure type where several orders of a formula share it.
    """

    space_group: int
    system: str
    sites: Callable[..., list[Site]]
    internal: tuple[str, ...] = ()
    centring: tuple[Vector, ...] = _P
    label: str | None = None

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all free parameters: lattice constants, then internal ones."""
        return (*_AXES[self.system], *self.internal)


def conventional_cell(system: str, axes: Sequence[float]) -> NDArray[np.float64]:
    """Return the conventional lattice vectors, as rows."""
    a = axes[0]
    if system == "hexagonal":
        return np.array([[a, 0.0, 0.0], [-a / 2, a * 3**0.5 / 2, 0.0], [0.0, 0.0, axes[1]]])
    lengths = {"cubic": [a, a, a], "tetragonal": [a, a, axes[-1]]}.get(system, list(axes))
    return np.diag(lengths)


def _fixed(*sites: tuple[int, float, float, float]) -> Callable[[], list[Site]]:
    """Sites without a free parameter."""
    return lambda: [(index, (x, y, z)) for index, x, y, z in sites]


def _diagonal(*sites: tuple[int, float]) -> Callable[[], list[Site]]:
    """Sites on the body diagonal, which is all that the simple cubic types need."""
    return lambda: [(index, (x, x, x)) for index, x in sites]


def _pair(index: int, z: float) -> list[Site]:
    """A site on the main axis and its image below."""
    return [(index, (0.0, 0.0, z)), (index, (0.0, 0.0, -z))]


def _layer_pair(index: int, z: float) -> list[Site]:
    """Two close-packed layers of a trigonal cell that inversion exchanges."""
    return [(index, (1 / 3, 2 / 3, z)), (index, (2 / 3, 1 / 3, -z))]


def _hexagonal_four(index: int, z: float) -> list[Site]:
    """Position 4f of P6_3/mmc."""
    return [
        (index, (1 / 3, 2 / 3, z)),
        (index, (2 / 3, 1 / 3, z + 0.5)),
        (index, (2 / 3, 1 / 3, -z)),
        (index, (1 / 3, 2 / 3, 0.5 - z)),
    ]


def _square_pair(index: int, z: float) -> list[Site]:
    """Position 2c of P4/nmm."""
    return [(index, (0.0, 0.5, z)), (index, (0.5, 0.0, -z))]


def _square_plane(index: int, z: float) -> list[Site]:
    """Position 2a (z = 0) or 2b (z = 1/2) of P4/nmm."""
    return [(index, (0.0, 0.0, z)), (index, (0.5, 0.5, z))]


def _wurtzite(u: float) -> list[Site]:
    s, t = 1 / 3, 2 / 3
    return [(0, (s, t, 0.0)), (0, (t, s, 0.5)), (1, (s, t, u)), (1, (t, s, 0.5 + u))]


def _lonsdaleite(u: float) -> list[Site]:
    return [(0, coords) for _, coords in _wurtzite(u)]


def _rutile(u: float) -> list[Site]:
    anions = [(u, u, 0.0), (1 - u, 1 - u, 0.0), (0.5 + u, 0.5 - u, 0.5), (0.5 - u, 0.5 + u, 0.5)]
    return [(0, (0.0, 0.0, 0.0)), (0, (0.5, 0.5, 0.5)), *((1, x) for x in anions)]


def _marcasite(x: float, y: float) -> list[Site]:
    pairs = [(x, y, 0.0), (-x, -y, 0.0), (0.5 - x, 0.5 + y, 0.5), (0.5 + x, 0.5 - y, 0.5)]
    return [(0, (0.0, 0.0, 0.0)), (0, (0.5, 0.5, 0.5)), *((1, s) for s in pairs)]


def _anatase(u: float) -> list[Site]:
    return [
        (0, (0.0, 0.0, 0.0)),
        (0, (0.0, 0.5, 0.25)),
        *_pair(1, u),
        (1, (0.0, 0.5, 0.25 + u)),
        (1, (0.0, 0.5, 0.25 - u)),
    ]


def _chalcopyrite(u: float) -> list[Site]:
    anions = [(u, 0.25, 0.125), (-u, 0.75, 0.125), (0.75, u, 0.875), (0.25, -u, 0.875)]
    return [
        (0, (0.0, 0.0, 0.0)),
        (0, (0.0, 0.5, 0.25)),
        (1, (0.0, 0.0, 0.5)),
        (1, (0.0, 0.5, 0.75)),
        *((2, x) for x in anions),
    ]


def _molybdenite(z: float) -> list[Site]:
    return [(0, (1 / 3, 2 / 3, 0.25)), (0, (2 / 3, 1 / 3, 0.75)), *_hexagonal_four(1, z)]


def _sodium_arsenide(z: float) -> list[Site]:
    pnictogens: list[Site] = [(1, (1 / 3, 2 / 3, 0.25)), (1, (2 / 3, 1 / 3, 0.75))]
    return [(0, (0.0, 0.0, 0.25)), (0, (0.0, 0.0, 0.75)), *_hexagonal_four(0, z), *pnictogens]


def _mercury_iodide(z: float) -> list[Site]:
    anions = [(0.0, 0.5, z), (0.5, 0.0, -z), (0.0, 0.5, 0.5 + z), (0.5, 0.0, 0.5 - z)]
    return [(0, (0.0, 0.0, 0.0)), (0, (0.5, 0.5, 0.5)), *((1, x) for x in anions)]


def _silicon_disulfide(x: float, y: float) -> list[Site]:
    anions = [(x, y, 0.0), (-x, -y, 0.0), (-x, y, 0.5), (x, -y, 0.5)]
    return [(0, (0.0, 0.0, 0.25)), (0, (0.0, 0.0, 0.75)), *((1, s) for s in anions)]


def _germanium_sulfide(x1: float, y1: float, x2: float, y2: float) -> list[Site]:
    return [
        (index, coords)
        for index, x, y in ((0, x1, y1), (1, x2, y2))
        for coords in (
            (x, y, 0.25),
            (-x, -y, 0.75),
            (0.5 - x, 0.5 + y, 0.25),
            (0.5 + x, 0.5 - y, 0.75),
        )
    ]


def _thallium_iodide(y1: float, y2: float) -> list[Site]:
    return [
        (index, coords)
        for index, y in ((0, y1), (1, y2))
        for coords in ((0.0, y, 0.25), (0.0, -y, 0.75))
    ]


def _black_phosphorus(y: float, z: float) -> list[Site]:
    sites = [(0.0, y, z), (0.0, 0.5 - y, 0.5 + z), (0.0, 0.5 + y, 0.5 - z), (0.0, -y, -z)]
    return [(0, x) for x in sites]


def _threefold_screw(index: int, x: float, z: float) -> list[Site]:
    """A site on a twofold axis of P3_121 and its images."""
    return [
        (index, (x, 0.0, z)),
        (index, (0.0, x, z + 1 / 3)),
        (index, (-x, -x, z + 2 / 3)),
    ]


def _aluminium_fluoride(x: float) -> list[Site]:
    upper = [(x, 0.0, 0.25), (0.0, x, 0.25), (-x, -x, 0.25)]
    lower = [(-x, 0.0, 0.75), (0.0, -x, 0.75), (x, x, 0.75)]
    return [(0, (0.0, 0.0, 0.0)), (0, (0.0, 0.0, 0.5)), *((1, s) for s in upper + lower)]


def _chloroplatinate(x: float) -> list[Site]:
    corners = [(x, x, 0.0), (-x, -x, 0.0), (x, -x, 0.0), (-x, x, 0.0)]
    return [
        (0, (0.0, 0.5, 0.5)),
        (0, (0.5, 0.0, 0.5)),
        (1, (0.0, 0.0, 0.0)),
        *((2, s) for s in corners),
    ]


def _layered_perovskite(z1: float, z2: float) -> list[Site]:
    plane: list[Site] = [(2, (0.0, 0.5, 0.0)), (2, (0.5, 0.0, 0.0))]
    return [*_pair(0, z1), (1, (0.0, 0.0, 0.0)), *plane, *_pair(2, z2)]


def _square_net(z: float) -> list[Site]:
    """ThCr2Si2: the first element between nets of the second and third."""
    net: list[Site] = [(1, (0.0, 0.5, 0.25)), (1, (0.5, 0.0, 0.25))]
    return [(0, (0.0, 0.0, 0.0)), *net, *_pair(2, z)]


_OCTAHEDRON = ((0.5, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 0.5))
_CENTRE = (0.5, 0.5, 0.5)
_ORIGIN = (0.0, 0.0, 0.0)
_HEXAGONAL_ONE = (1 / 3, 2 / 3, 0.25)
_HEXAGONAL_TWO = (2 / 3, 1 / 3, 0.25)

TYPES: dict[str, StructureType] = {
    "diamond": StructureType(227, "cubic", _diagonal((0, 0.0), (0, 0.25)), centring=_F),
    "lonsdaleite": StructureType(194, "hexagonal", _lonsdaleite, ("u",)),
    "zincblende": StructureType(216, "cubic", _diagonal((0, 0.0), (1, 0.25)), centring=_F),
    "wurtzite": StructureType(186, "hexagonal", _wurtzite, ("u",)),
    "rocksalt": StructureType(225, "cubic", _diagonal((0, 0.0), (1, 0.5)), centring=_F),
    "caesium-chloride": StructureType(221, "cubic", _diagonal((0, 0.0), (1, 0.5))),
    "fluorite": StructureType(225, "cubic", _diagonal((0, 0.0), (1, 0.25), (1, 0.75)), centring=_F),
    "antifluorite": StructureType(
        225, "cubic", _diagonal((0, 0.25), (0, 0.75), (1, 0.0)), centring=_F
    ),
    # The "filled zinc blende" I-II-V compounds: both cations surround the anion tetrahedrally.
    "half-heusler": StructureType(
        216, "cubic", _diagonal((0, 0.5), (1, 0.0), (2, 0.25)), centring=_F
    ),
    # In the 18-electron ones it is the late transition metal, the second of the formula.
    "half-heusler-18": StructureType(
        216,
        "cubic",
        _diagonal((0, 0.5), (2, 0.0), (1, 0.25)),
        centring=_F,
        label="half-heusler",
    ),
    "full-heusler": StructureType(
        225, "cubic", _diagonal((0, 0.25), (0, 0.75), (1, 0.5), (2, 0.0)), centring=_F
    ),
    "bismuth-fluoride": StructureType(
        225, "cubic", _diagonal((0, 0.0), (1, 0.25), (1, 0.5), (1, 0.75)), centring=_F
    ),
    "lithium-bismuthide": StructureType(
        225, "cubic", _diagonal((0, 0.25), (0, 0.5), (0, 0.75), (1, 0.0)), centring=_F
    ),
    "rutile": StructureType(136, "tetragonal", _rutile, ("u",)),
    "marcasite": StructureType(58, "orthorhombic", _marcasite, ("x", "y")),
    "anatase": StructureType(141, "tetragonal", _anatase, ("u",), _I),
    "perovskite": StructureType(
        221, "cubic", lambda: [(0, _CENTRE), (1, _ORIGIN), *((2, x) for x in _OCTAHEDRON)]
    ),
    # The octahedra are the other way round: the anion of the formula's middle is their centre.
    "antiperovskite": StructureType(
        221, "cubic", lambda: [*((0, x) for x in _OCTAHEDRON), (1, _ORIGIN), (2, _CENTRE)]
    ),
    "rhenium-trioxide": StructureType(
        221, "cubic", lambda: [(0, _ORIGIN), *((1, x) for x in _OCTAHEDRON)]
    ),
    "anti-rhenium-trioxide": StructureType(
        221, "cubic", lambda: [*((0, x) for x in _OCTAHEDRON), (1, _ORIGIN)]
    ),
    "potassium-tetrafluoronickelate": StructureType(
        139, "tetragonal", _layered_perovskite, ("z1", "z2"), _I
    ),
    "potassium-tetrachloroplatinate": StructureType(123, "tetragonal", _chloroplatinate, ("x",)),
    "aluminium-fluoride": StructureType(167, "hexagonal", _aluminium_fluoride, ("x",), _R),
    "chalcopyrite": StructureType(122, "tetragonal", _chalcopyrite, ("u",), _I),
    "cuprite": StructureType(
        224,
        "cubic",
        _fixed(
            (0, 0.25, 0.25, 0.25),
            (0, 0.75, 0.75, 0.25),
            (0, 0.75, 0.25, 0.75),
            (0, 0.25, 0.75, 0.75),
            (1, 0.0, 0.0, 0.0),
            (1, 0.5, 0.5, 0.5),
        ),
    ),
    "beta-cristobalite": StructureType(
        227,
        "cubic",
        _fixed(
            (0, 0.0, 0.0, 0.0),
            (0, 0.25, 0.25, 0.25),
            (1, 0.125, 0.125, 0.125),
            (1, 0.125, -0.125, -0.125),
            (1, -0.125, 0.125, -0.125),
            (1, -0.125, -0.125, 0.125),
        ),
        centring=_F,
    ),
    "platinum-sulfide": StructureType(
        131,
        "tetragonal",
        _fixed((0, 0.0, 0.5, 0.0), (0, 0.5, 0.0, 0.5), (1, 0.0, 0.0, 0.25), (1, 0.0, 0.0, 0.75)),
    ),
    "litharge": StructureType(
        129, "tetragonal", lambda z: [*_square_pair(0, z), *_square_plane(1, 0.0)], ("z",)
    ),
    "matlockite": StructureType(
        129,
        "tetragonal",
        lambda z1, z2: [*_square_pair(0, z1), *_square_plane(1, 0.0), *_square_pair(2, z2)],
        ("z1", "z2"),
    ),
    # The anion takes the place of the heavy cation: KMgP, NaLiS.
    "anti-matlockite": StructureType(
        129,
        "tetragonal",
        lambda z1, z2: [*_square_pair(0, z2), *_square_plane(1, 0.0), *_square_pair(2, z1)],
        ("z1", "z2"),
    ),
    "lithium-hydroxide": StructureType(
        129,
        "tetragonal",
        lambda z1, z2: [*_square_plane(0, 0.0), *_square_pair(1, z1), *_square_pair(2, z2)],
        ("z1", "z2"),
    ),
    "zirconium-copper-silicon-arsenide": StructureType(
        129,
        "tetragonal",
        lambda z1, z2: [
            *_square_pair(0, z1),
            *_square_plane(1, 0.5),
            *_square_pair(2, z2),
            *_square_plane(3, 0.0),
        ],
        ("z1", "z2"),
    ),
    "thorium-chromium-silicide": StructureType(139, "tetragonal", _square_net, ("z",), _I),
    "bismuth-oxyselenide": StructureType(
        139,
        "tetragonal",
        lambda z: [(2 - index, coords) for index, coords in _square_net(z)],
        ("z",),
        _I,
    ),
    "xenon-fluoride": StructureType(
        139, "tetragonal", lambda z: [(0, _ORIGIN), *_pair(1, z)], ("z",), _I
    ),
    "calomel": StructureType(
        139, "tetragonal", lambda z1, z2: [*_pair(0, z1), *_pair(1, z2)], ("z1", "z2"), _I
    ),
    "mercury-iodide": StructureType(137, "tetragonal", _mercury_iodide, ("z",)),
    "silicon-disulfide": StructureType(72, "orthorhombic", _silicon_disulfide, ("x", "y"), _I),
    "germanium-sulfide": StructureType(
        62, "orthorhombic", _germanium_sulfide, ("x1", "y1", "x2", "y2")
    ),
    "thallium-iodide": StructureType(63, "orthorhombic", _thallium_iodide, ("y1", "y2"), _C),
    "black-phosphorus": StructureType(64, "orthorhombic", _black_phosphorus, ("y", "z"), _C),
    "cadmium-iodide": StructureType(
        164, "hexagonal", lambda z: [(0, _ORIGIN), *_layer_pair(1, z)], ("z",)
    ),
    "brucite": StructureType(
        164,
        "hexagonal",
        lambda z1, z2: [(0, _ORIGIN), *_layer_pair(1, z1), *_layer_pair(2, z2)],
        ("z1", "z2"),
    ),
    # Cadmium iodide without inversion: two different anions face each other.
    "bismuth-tellurohalide": StructureType(
        156,
        "hexagonal",
        lambda z1, z2: [(0, _ORIGIN), (1, (2 / 3, 1 / 3, -z1)), (2, (1 / 3, 2 / 3, z2))],
        ("z1", "z2"),
    ),
    "cadmium-chloride": StructureType(
        166, "hexagonal", lambda z: [(0, _ORIGIN), *_pair(1, z)], ("z",), _R
    ),
    "anti-cadmium-chloride": StructureType(
        166, "hexagonal", lambda z: [*_pair(0, z), (1, _ORIGIN)], ("z",), _R
    ),
    "sodium-iron-oxide": StructureType(
        166, "hexagonal", lambda z: [(0, (0.0, 0.0, 0.5)), (1, _ORIGIN), *_pair(2, z)], ("z",), _R
    ),
    "delafossite": StructureType(
        166, "hexagonal", lambda z: [(0, _ORIGIN), (1, (0.0, 0.0, 0.5)), *_pair(2, z)], ("z",), _R
    ),
    "bismuth-telluride": StructureType(
        166,
        "hexagonal",
        lambda z1, z2: [*_pair(0, z1), (1, _ORIGIN), *_pair(1, z2)],
        ("z1", "z2"),
        _R,
    ),
    "tetradymite": StructureType(
        166,
        "hexagonal",
        lambda z1, z2: [*_pair(0, z1), (1, _ORIGIN), *_pair(2, z2)],
        ("z1", "z2"),
        _R,
    ),
    "calcium-aluminium-silicide": StructureType(
        164,
        "hexagonal",
        lambda z1, z2: [(0, _ORIGIN), *_layer_pair(1, z1), *_layer_pair(2, z2)],
        ("z1", "z2"),
    ),
    "lanthanum-oxide": StructureType(
        164,
        "hexagonal",
        lambda z1, z2: [*_layer_pair(0, z2), (1, _ORIGIN), *_layer_pair(1, z1)],
        ("z1", "z2"),
    ),
    "lanthanum-oxysulfide": StructureType(
        164,
        "hexagonal",
        lambda z1, z2: [*_layer_pair(0, z2), *_layer_pair(1, z1), (2, _ORIGIN)],
        ("z1", "z2"),
    ),
    "magnesium-antimonide": StructureType(
        164,
        "hexagonal",
        lambda z1, z2: [(0, _ORIGIN), *_layer_pair(0, z1), *_layer_pair(1, z2)],
        ("z1", "z2"),
    ),
    "boron-nitride": StructureType(
        194,
        "hexagonal",
        lambda: [
            (0, _HEXAGONAL_ONE),
            (0, (2 / 3, 1 / 3, 0.75)),
            (1, _HEXAGONAL_TWO),
            (1, (1 / 3, 2 / 3, 0.75)),
        ],
    ),
    # The first element between honeycomb layers of the other two.
    "lithium-boron-carbide": StructureType(
        194,
        "hexagonal",
        lambda: [
            (0, _ORIGIN),
            (0, (0.0, 0.0, 0.5)),
            (1, _HEXAGONAL_ONE),
            (1, (2 / 3, 1 / 3, 0.75)),
            (2, _HEXAGONAL_TWO),
            (2, (1 / 3, 2 / 3, 0.75)),
        ],
    ),
    "molybdenite": StructureType(194, "hexagonal", _molybdenite, ("z",)),
    "gallium-sulfide": StructureType(
        194,
        "hexagonal",
        lambda z1, z2: [*_hexagonal_four(0, z1), *_hexagonal_four(1, z2)],
        ("z1", "z2"),
    ),
    "sodium-arsenide": StructureType(194, "hexagonal", _sodium_arsenide, ("z",)),
    "lithium-nitride": StructureType(
        191,
        "hexagonal",
        _fixed((0, 0.0, 0.0, 0.5), (0, 1 / 3, 2 / 3, 0.0), (0, 2 / 3, 1 / 3, 0.0), (1, 0, 0, 0)),
    ),
    "selenium": StructureType(152, "hexagonal", lambda x: _threefold_screw(0, x, 1 / 3), ("x",)),
    "cinnabar": StructureType(
        152,
        "hexagonal",
        lambda x1, x2: [*_threefold_screw(0, x1, 1 / 3), *_threefold_screw(1, x2, 5 / 6)],
        ("x1", "x2"),
    ),
}

# --------------------------------------------------------------------------- measured constants

Constants = Mapping[str, Mapping[str, tuple[float, ...]]]

# Experimental lattice constants in Å and internal coordinates, in the order of the parameters.
MEASURED: Constants = {
    "diamond": {"C": (3.567,), "Si": (5.431,), "Ge": (5.658,), "Sn": (6.489,)},
    "zincblende": {
        "BN": (3.616,),
        "BP": (4.538,),
        "BAs": (4.777,),
        "SiC": (4.360,),
        "BeS": (4.870,),
        "BeSe": (5.137,),
        "BeTe": (5.622,),
        "AlP": (5.467,),
        "AlAs": (5.661,),
        "AlSb": (6.136,),
        "GaP": (5.451,),
        "GaAs": (5.653,),
        "GaSb": (6.096,),
        "InP": (5.869,),
        "InAs": (6.058,),
        "InSb": (6.479,),
        "ZnS": (5.409,),
        "ZnSe": (5.668,),
        "ZnTe": (6.101,),
        "CdS": (5.818,),
        "CdSe": (6.052,),
        "CdTe": (6.482,),
        "HgS": (5.852,),
    },
    "wurtzite": {
        "BeO": (2.698, 4.377, 0.378),
        "AlN": (3.112, 4.982, 0.382),
        "GaN": (3.189, 5.185, 0.377),
        "ZnO": (3.250, 5.207, 0.382),
        "ZnS": (3.823, 6.261, 0.375),
        "CdS": (4.136, 6.714, 0.377),
        "CdSe": (4.299, 7.011, 0.376),
        "SiC": (3.076, 5.048, 0.376),
        "AgI": (4.592, 7.510, 0.375),
    },
    "rocksalt": {
        "LiH": (4.084,),
        "LiF": (4.027,),
        "LiCl": (5.130,),
        "LiBr": (5.501,),
        "LiI": (6.000,),
        "NaH": (4.880,),
        "NaF": (4.634,),
        "NaCl": (5.640,),
        "NaBr": (5.973,),
        "NaI": (6.473,),
        "KH": (5.700,),
        "KF": (5.347,),
        "KCl": (6.293,),
        "KBr": (6.600,),
        "KI": (7.066,),
        "RbH": (6.037,),
        "RbF": (5.640,),
        "RbCl": (6.581,),
        "RbBr": (6.854,),
        "RbI": (7.342,),
        "CsH": (6.376,),
        "CsF": (6.008,),
        "AgF": (4.920,),
        "AgCl": (5.549,),
        "AgBr": (5.775,),
        "MgO": (4.212,),
        "MgS": (5.202,),
        "MgSe": (5.451,),
        "CaO": (4.811,),
        "CaS": (5.695,),
        "CaSe": (5.916,),
        "CaTe": (6.345,),
        "SrO": (5.160,),
        "SrS": (6.020,),
        "SrSe": (6.234,),
        "BaO": (5.539,),
        "BaS": (6.387,),
        "BaSe": (6.600,),
        "BaTe": (6.989,),
        "CdO": (4.695,),
        "PbS": (5.936,),
        "PbSe": (6.124,),
        "PbTe": (6.462,),
        "SnTe": (6.327,),
        "ScN": (4.500,),
        "YN": (4.877,),
        "LaN": (5.301,),
    },
    "caesium-chloride": {
        "CsCl": (4.123,),
        "CsBr": (4.286,),
        "CsI": (4.567,),
        "TlCl": (3.834,),
        "TlBr": (3.985,),
        "TlI": (4.205,),
        "CsAu": (4.263,),
    },
    "fluorite": {
        "CaF2": (5.463,),
        "SrF2": (5.800,),
        "BaF2": (6.200,),
        "CdF2": (5.388,),
        "PbF2": (5.940,),
        "HgF2": (5.540,),
        "SrCl2": (6.977,),
    },
    "antifluorite": {
        "Li2O": (4.619,),
        "Na2O": (5.55,),
        "K2O": (6.436,),
        "Rb2O": (6.740,),
        "Li2S": (5.710,),
        "Na2S": (6.526,),
        "K2S": (7.391,),
        "Rb2S": (7.650,),
        "Li2Se": (6.005,),
        "Na2Se": (6.809,),
        "K2Se": (7.676,),
        "Li2Te": (6.504,),
        "Na2Te": (7.314,),
        "K2Te": (8.152,),
        "Be2C": (4.342,),
        "Mg2Si": (6.351,),
        "Mg2Ge": (6.385,),
        "Mg2Sn": (6.765,),
    },
    "half-heusler": {
        "LiZnN": (4.877,),
        "LiZnAs": (5.940,),
        "LiMgP": (6.005,),
        "AgMgAs": (6.240,),
        "NaZnAs": (5.912,),
    },
    "half-heusler-18": {
        "TiNiSn": (5.930,),
        "ZrNiSn": (6.113,),
        "HfNiSn": (6.083,),
        "TiCoSb": (5.884,),
        "ZrCoSb": (6.068,),
        "HfCoSb": (6.038,),
        "NbFeSb": (5.950,),
        "YNiSb": (6.312,),
        "YNiBi": (6.411,),
        "YPdSb": (6.527,),
    },
    "full-heusler": {"Na2KSb": (7.728,), "K2CsSb": (8.615,)},
    "lithium-bismuthide": {"Li3Sb": (6.573,)},
    "rutile": {
        "MgF2": (4.621, 3.052, 0.303),
        "ZnF2": (4.703, 3.134, 0.303),
        "TiO2": (4.594, 2.959, 0.305),
        "SnO2": (4.738, 3.187, 0.307),
        "GeO2": (4.395, 2.860, 0.306),
        "SiO2": (4.179, 2.666, 0.306),
        "MgH2": (4.517, 3.020, 0.306),
    },
    "marcasite": {"FeS2": (4.443, 5.425, 3.387, 0.200, 0.378)},
    "anatase": {"TiO2": (3.785, 9.514, 0.208)},
    "perovskite": {
        "KMgF3": (3.989,),
        "KZnF3": (4.055,),
        "RbCaF3": (4.452,),
        "CsCaF3": (4.524,),
        "RbCdF3": (4.398,),
        "CsCdF3": (4.465,),
        "CsPbF3": (4.800,),
        "BaLiF3": (3.995,),
        "BaLiH3": (4.023,),
        "CsCaCl3": (5.396,),
        "CsPbCl3": (5.605,),
        "CsPbBr3": (5.874,),
        "CsPbI3": (6.289,),
        "CsSnBr3": (5.804,),
        "CsSnI3": (6.219,),
        "SrTiO3": (3.905,),
        "BaTiO3": (4.00,),
        "PbTiO3": (3.970,),
        "BaZrO3": (4.193,),
        "BaHfO3": (4.171,),
        "BaSnO3": (4.116,),
        "KTaO3": (3.989,),
        "KNbO3": (4.022,),
        "NaTaO3": (3.929,),
        "SrGeO3": (3.798,),
    },
    "antiperovskite": {
        "Mg3NAs": (4.217,),
        "Mg3NSb": (4.352,),
        "Ca3NSb": (4.854,),
        "Ca3NBi": (4.888,),
    },
    "rhenium-trioxide": {"ScF3": (4.013,)},
    "anti-rhenium-trioxide": {"Na3N": (4.733,)},
    "potassium-tetrafluoronickelate": {"Sr2TiO4": (3.884, 12.600, 0.355, 0.155)},
    "potassium-tetrachloroplatinate": {"K2PtCl4": (7.025, 4.144, 0.232)},
    "aluminium-fluoride": {
        "AlF3": (4.931, 12.446, 0.428),
        "AlH3": (4.449, 11.804, 0.628),
    },
    "chalcopyrite": {
        "AgAlS2": (5.707, 10.28, 0.290),
        "AgGaS2": (5.757, 10.304, 0.291),
        "AgGaSe2": (5.992, 10.886, 0.278),
        "AgGaTe2": (6.301, 11.96, 0.260),
        "AgInS2": (5.880, 11.20, 0.250),
        "AgInSe2": (6.104, 11.712, 0.259),
        "AgInTe2": (6.42, 12.59, 0.250),
        "ZnSiP2": (5.400, 10.441, 0.269),
        "ZnGeP2": (5.465, 10.771, 0.258),
        "ZnSnP2": (5.651, 11.302, 0.239),
        "ZnSiAs2": (5.606, 10.88, 0.266),
        "ZnGeAs2": (5.672, 11.153, 0.250),
        "ZnSnAs2": (5.852, 11.705, 0.231),
        "CdSiP2": (5.678, 10.431, 0.297),
        "CdGeP2": (5.740, 10.776, 0.284),
        "CdSnP2": (5.900, 11.518, 0.265),
        "CdSiAs2": (5.884, 10.882, 0.298),
        "CdGeAs2": (5.943, 11.217, 0.279),
    },
    "cuprite": {"Ag2O": (4.736,)},
    "platinum-sulfide": {"PtS": (3.470, 6.109), "PdO": (3.043, 5.337)},
    "litharge": {"PbO": (3.976, 5.023, 0.235), "SnO": (3.802, 4.836, 0.238)},
    "matlockite": {
        "CaFCl": (3.894, 6.818, 0.196, 0.643),
        "SrFCl": (4.126, 6.958, 0.202, 0.643),
        "BaFCl": (4.391, 7.226, 0.205, 0.647),
        "BaFBr": (4.508, 7.441, 0.191, 0.650),
        "BaFI": (4.654, 7.962, 0.170, 0.652),
        "PbFCl": (4.110, 7.246, 0.206, 0.650),
        "BiOCl": (3.883, 7.347, 0.170, 0.645),
        "LaOCl": (4.121, 6.885, 0.178, 0.635),
    },
    "lithium-hydroxide": {"LiOH": (3.549, 4.334, 0.195, 0.407)},
    "bismuth-oxyselenide": {"Bi2O2Se": (3.891, 12.213, 0.353)},
    "xenon-fluoride": {"XeF2": (4.315, 6.990, 0.284)},
    "mercury-iodide": {"HgI2": (4.370, 12.44, 0.139)},
    "germanium-sulfide": {
        "GeS": (4.299, 10.481, 3.646, 0.128, 0.121, 0.502, 0.850),
        "GeSe": (4.388, 10.825, 3.833, 0.112, 0.121, 0.502, 0.853),
        "SnS": (4.334, 11.200, 3.987, 0.120, 0.119, 0.479, 0.851),
        "SnSe": (4.445, 11.501, 4.153, 0.104, 0.119, 0.482, 0.855),
    },
    "black-phosphorus": {"P": (3.314, 10.478, 4.376, 0.102, 0.081)},
    "cadmium-iodide": {
        "MgI2": (4.148, 6.894, 0.25),
        "MgBr2": (3.815, 6.260, 0.25),
        "CaI2": (4.485, 6.965, 0.25),
        "CdI2": (4.244, 6.859, 0.25),
        "PbI2": (4.557, 6.979, 0.265),
        "SnS2": (3.648, 5.899, 0.25),
        "SnSe2": (3.811, 6.137, 0.25),
        "ZrS2": (3.662, 5.813, 0.25),
        "ZrSe2": (3.770, 6.138, 0.25),
        "HfS2": (3.630, 5.850, 0.25),
        "HfSe2": (3.748, 6.159, 0.25),
        "PtS2": (3.543, 5.039, 0.227),
    },
    "brucite": {
        "MgO2H2": (3.147, 4.769, 0.220, 0.430),
        "CaO2H2": (3.592, 4.906, 0.234, 0.426),
    },
    "cadmium-chloride": {
        "MgCl2": (3.636, 17.667, 0.258),
        "CdCl2": (3.854, 17.457, 0.25),
    },
    "anti-cadmium-chloride": {"Cs2O": (4.256, 18.99, 0.256)},
    "sodium-iron-oxide": {"LiCoO2": (2.816, 14.05, 0.2605)},
    "bismuth-telluride": {
        "Bi2Te3": (4.386, 30.497, 0.400, 0.210),
        "Bi2Se3": (4.143, 28.636, 0.399, 0.206),
        "Sb2Te3": (4.264, 30.458, 0.399, 0.211),
    },
    "lanthanum-oxide": {"La2O3": (3.937, 6.129, 0.645, 0.245)},
    "lanthanum-oxysulfide": {"La2O2S": (4.051, 6.944, 0.629, 0.279)},
    "magnesium-antimonide": {"Mg3Sb2": (4.568, 7.229, 0.634, 0.229)},
    "boron-nitride": {"BN": (2.504, 6.661)},
    "lithium-boron-carbide": {"LiBC": (2.752, 7.058)},
    "molybdenite": {
        "MoS2": (3.160, 12.295, 0.621),
        "MoSe2": (3.288, 12.925, 0.621),
        "MoTe2": (3.519, 13.964, 0.621),
        "WS2": (3.154, 12.350, 0.622),
        "WSe2": (3.286, 12.980, 0.621),
    },
    "gallium-sulfide": {"GaS": (3.587, 15.492, 0.171, 0.602)},
    "sodium-arsenide": {
        "Li3P": (4.264, 7.579, 0.583),
        "Li3As": (4.377, 7.801, 0.583),
        "Na3As": (5.088, 8.982, 0.583),
        "Na3Sb": (5.366, 9.515, 0.583),
        "K3As": (5.782, 10.222, 0.583),
    },
    "lithium-nitride": {"Li3N": (3.648, 3.875)},
    "selenium": {"Se": (4.366, 4.954, 0.225), "Te": (4.457, 5.929, 0.264)},
    "cinnabar": {"HgS": (4.149, 9.495, 0.720, 0.489)},
}
# Crystals that do not have their structure at room temperature say so.
CONDITIONS = {
    "Sn-diamond": "grey tin, below 286 K",
    "AgI-wurtzite": "below 420 K",
    "TlI-caesium-chloride": "above 448 K",
    "BaTiO3-perovskite": "cubic phase, above 393 K",
    "PbTiO3-perovskite": "cubic phase, above 763 K",
    "KNbO3-perovskite": "cubic phase, above 708 K",
    "NaTaO3-perovskite": "cubic phase, above 903 K",
    "SrGeO3-perovskite": "grown at high pressure",
    "SiO2-rutile": "stishovite, grown at high pressure",
    "CsPbF3-perovskite": "cubic phase, above 187 K",
    "CsPbCl3-perovskite": "cubic phase, above 320 K",
    "CsPbBr3-perovskite": "cubic phase, above 403 K",
    "CsPbI3-perovskite": "cubic phase, above 583 K",
    "CsSnI3-perovskite": "cubic phase, above 426 K",
}

# --------------------------------------------------------------------------- estimates

# Where a fit starts: cells remembered roughly, for members that no measured one resembles.
ESTIMATED: Constants = {
    "lonsdaleite": {"C": (2.52, 4.12, 0.375), "Si": (3.84, 6.33, 0.375)},
    "zincblende": {"AgI": (6.49,)},
    "rocksalt": {
        "TlCl": (6.30,),
        "CsCl": (7.02,),
        "SrTe": (6.66,),
        "SnSe": (6.00,),
        "GeTe": (6.01,),
        "ScP": (5.31,),
        "LaP": (6.02,),
        "ZnO": (4.28,),
    },
    "fluorite": {"CaH2": (5.35,), "ZrO2": (5.09,), "BaCl2": (7.34,)},
    "antifluorite": {"Mg2C": (5.45,)},
    "caesium-chloride": {"CsH": (3.80,), "CaO": (2.83,), "BaS": (3.85,)},
    "half-heusler": {"LiNaS": (6.15,), "LiBeN": (4.40,), "LiAlSi": (5.93,)},
    "half-heusler-18": {
        "TiIrSb": (6.11,),
        "ScCoTe": (6.05,),
        "NbCoSn": (5.96,),
        "ZrPtSn": (6.32,),
        "TaRuSb": (6.14,),
    },
    "full-heusler": {"Fe2TiSi": (5.72,), "Fe2TaAl": (5.93,), "Li2MgSi": (6.37,)},
    "bismuth-fluoride": {"BiF3": (5.85,), "LaF3": (5.90,)},
    "lithium-bismuthide": {"Cs3Sb": (9.15,)},
    "rutile": {"CaCl2": (6.35, 4.19, 0.303), "BeF2": (4.05, 2.65, 0.303)},
    "marcasite": {
        "FeP2": (4.97, 5.66, 2.72, 0.168, 0.369),
        "FeAs2": (5.30, 5.98, 2.88, 0.176, 0.362),
    },
    "anatase": {"SnO2": (4.00, 9.90, 0.205)},
    "perovskite": {
        "AgMgF3": (3.92,),
        "CsHgF3": (4.57,),
        "KMgH3": (4.03,),
        "CsCaH3": (4.61,),
        "AgZnF3": (3.98,),
        "CsGeCl3": (5.44,),
        "CsCdCl3": (5.20,),
        "LaAlO3": (3.80,),
        "CaSiO3": (3.57,),
        "NaSbO3": (3.95,),
        "LaWN3": (4.00,),
        "BaZrS3": (5.00,),
    },
    "antiperovskite": {
        "Li3OCl": (3.91,),
        "Na3OCl": (4.50,),
        "K3OBr": (5.21,),
        "K3OAu": (5.24,),
        "Na3SI": (5.00,),
        "Na3HS": (4.60,),
        "Ca3OSi": (4.70,),
    },
    "rhenium-trioxide": {"WO3": (3.78,), "AlF3": (3.58,), "InF3": (4.05,)},
    "potassium-tetrafluoronickelate": {
        "K2MgF4": (3.955, 13.2, 0.352, 0.150),
        "K2ZnF4": (4.06, 13.1, 0.354, 0.155),
        "Ba2SnO4": (4.13, 13.3, 0.355, 0.155),
        "Cs2CdCl4": (5.26, 16.88, 0.360, 0.150),
    },
    "chalcopyrite": {"LiGaTe2": (6.34, 11.70, 0.265), "MgSiP2": (5.72, 10.12, 0.292)},
    "beta-cristobalite": {"SiO2": (7.40,), "BeF2": (7.10,)},
    "matlockite": {
        "CaHCl": (3.85, 6.86, 0.205, 0.650),
        "BiOI": (3.99, 9.13, 0.132, 0.668),
        "LaOBr": (4.15, 7.36, 0.164, 0.635),
    },
    "anti-matlockite": {
        "NaMgAs": (4.42, 7.15, 0.210, 0.650),
        "KMgP": (4.50, 7.54, 0.210, 0.660),
        "NaZnP": (4.07, 6.78, 0.210, 0.650),
        "NaLiS": (4.02, 6.52, 0.210, 0.650),
    },
    "zirconium-copper-silicon-arsenide": {
        "LaZnAsO": (4.10, 9.07, 0.135, 0.670),
        "LaAgSO": (4.07, 9.20, 0.130, 0.695),
        "SrAgSF": (4.06, 9.20, 0.155, 0.690),
    },
    "bismuth-oxyselenide": {"La2O2Te": (4.12, 13.1, 0.350)},
    "thorium-chromium-silicide": {"BaZn2P2": (4.02, 13.24, 0.360)},
    "calomel": {
        "Hg2F2": (3.67, 10.9, 0.115, 0.312),
        "Hg2Cl2": (4.48, 10.91, 0.119, 0.336),
        "Hg2I2": (4.92, 11.61, 0.117, 0.352),
    },
    "silicon-disulfide": {
        "SiS2": (9.55, 5.56, 5.55, 0.117, 0.208),
        "BeCl2": (9.86, 5.36, 5.26, 0.109, 0.203),
    },
    "thallium-iodide": {
        "TlI": (4.57, 12.92, 5.24, 0.392, 0.133),
        "InBr": (4.46, 12.39, 4.73, 0.386, 0.155),
    },
    "cadmium-iodide": {
        "TiO2": (2.98, 4.80, 0.20),
        "PtO2": (3.10, 4.50, 0.22),
        "GeI2": (4.17, 6.80, 0.25),
        "ZnCl2": (3.62, 5.90, 0.25),
    },
    "bismuth-tellurohalide": {
        "BiTeI": (4.34, 6.85, 0.251, 0.307),
        "SnSSe": (3.73, 6.02, 0.24, 0.26),
    },
    "sodium-iron-oxide": {
        "LiAlO2": (2.80, 14.21, 0.262),
        "NaInO2": (3.24, 16.35, 0.265),
        "NaInS2": (3.80, 19.89, 0.260),
        "KScO2": (3.22, 18.20, 0.270),
        "TlBiSe2": (4.24, 22.33, 0.260),
        "NaBiS2": (4.07, 19.90, 0.255),
        "NaYS2": (3.97, 19.90, 0.260),
    },
    "delafossite": {
        "AgAlO2": (2.89, 18.27, 0.114),
        "AgInO2": (3.28, 18.88, 0.112),
        "AgCoO2": (2.87, 18.37, 0.113),
    },
    "tetradymite": {"Bi2STe2": (4.25, 29.6, 0.396, 0.212)},
    "calcium-aluminium-silicide": {
        "CaMg2N2": (3.55, 6.00, 0.63, 0.25),
        "CaMg2Sb2": (4.66, 7.58, 0.63, 0.24),
        "CaZn2P2": (4.04, 6.84, 0.63, 0.26),
        "CaCd2P2": (4.28, 7.04, 0.63, 0.24),
        "ZrLi2N2": (3.28, 5.46, 0.61, 0.23),
    },
    "lithium-boron-carbide": {"KZnP": (4.09, 10.20), "BaAgP": (4.49, 8.83)},
    "boron-nitride": {"MgO": (3.53, 4.24), "AlN": (3.30, 4.15)},
    "platinum-sulfide": {"PtO": (3.08, 5.34)},
    "gallium-sulfide": {"InSe": (4.00, 16.64, 0.166, 0.588)},
    "mercury-iodide": {"ZnCl2": (3.70, 10.70, 0.125)},
}

# Filled in for the most similar member above, whose cell is scaled with the covalent radii.
SUBSTITUTED: Mapping[str, str] = {
    "zincblende": "BeO MgS MgTe ZnO GaN",
    "wurtzite": "BN BeS MgSe ZnSe CdTe AlP LiCl",
    "rocksalt": "TlBr AgI CdS",
    "caesium-chloride": "CsF RbCl RbAu BaSe",
    "fluorite": "MgF2 SrBr2 HfO2",
    "antifluorite": "Rb2Te Cs2O Cs2S",
    "half-heusler": (
        "LiMgN LiMgAs LiZnP LiCdP LiBeP NaMgAs AgMgP AgZnAs LiCaN LiAlGe LiNaSe LiNaTe LiKS NaKSe"
    ),
    "half-heusler-18": "ZrNiPb ZrRhSb ZrCoBi VFeSb TaFeSb ScPtSb",
    "full-heusler": "Li2NaN Li2NaAs Na2KAs K2RbSb",
    "bismuth-fluoride": "YF3",
    "lithium-bismuthide": "Li3As Li3Bi",
    "rutile": "CdF2 HfO2",
    "anatase": "ZrO2",
    "perovskite": (
        "NaMgF3 KCaF3 SrLiF3 SrLiH3 CsCaBr3 CsSrCl3 CsCdBr3 CsSnCl3 CsGeBr3 "
        "RbPbBr3 RbSnI3 SrZrO3 CaTiO3 CaZrO3 PbHfO3 NaNbO3 LaGaO3 YAlO3"
    ),
    "antiperovskite": "Mg3NP Ca3NP Sr3NAs Li3OBr Na3OI",
    "rhenium-trioxide": "YF3",
    "anti-rhenium-trioxide": "K3N",
    "potassium-tetrachloroplatinate": "K2PdCl4",
    "aluminium-fluoride": "GaF3",
    "chalcopyrite": "LiInSe2 AgAlSe2",
    "cuprite": "Au2S",
    "litharge": "SnS",
    "matlockite": "SrFBr PbFBr SrHCl YOCl",
    "anti-matlockite": "NaLiSe",
    "mercury-iodide": "ZnI2",
    "cadmium-iodide": "ZnI2 CdBr2 SnI2 PbBr2 HfO2",
    "bismuth-tellurohalide": "BiTeBr SbTeI ZrSSe",
    "cadmium-chloride": "CdBr2 ZnCl2",
    "anti-cadmium-chloride": "Rb2O",
    "sodium-iron-oxide": "NaScO2 NaInSe2 TlBiTe2 NaSbS2",
    "delafossite": "AgGaO2",
    "bismuth-telluride": "Sb2Se3",
    "tetradymite": "Bi2SeTe2",
    "calcium-aluminium-silicide": "CaMg2P2 BaMg2Sb2 CaZn2As2 SrZn2P2",
    "lanthanum-oxide": "Y2O3",
    "lanthanum-oxysulfide": "Y2O2S La2O2Se",
    "magnesium-antimonide": "Mg3P2",
    "boron-nitride": "ZnO",
    "gallium-sulfide": "GaSe",
    "sodium-arsenide": "Na3P",
}


# --------------------------------------------------------------------------- building


def formula_elements(formula: str) -> list[str]:
    """Return the elements of a formula in the order they are written."""
    return re.findall(r"[A-Z][a-z]?", formula)


class _Known(NamedTuple):
    """A crystal whose cell others are scaled from."""

    formula: str
    constants: tuple[float, ...]


def _cell_and_sites(
    kind: StructureType, constants: Sequence[float]
) -> tuple[NDArray[np.float64], list[tuple[int, NDArray[np.float64]]]]:
    """Return the primitive cell and its sites as (position in the formula, coordinates)."""
    n_axes = len(_AXES[kind.system])
    centring = np.array(kind.centring)
    lattice = centring @ conventional_cell(kind.system, constants[:n_axes])
    to_primitive = np.linalg.inv(centring)
    sites = kind.sites(*constants[n_axes:])
    return lattice, [(i, (np.array(x) @ to_primitive + 1e-9) % 1.0 - 1e-9) for i, x in sites]


def _build(
    type_name: str, formula: str, constants: Sequence[float], source: str, needs_fit: bool
) -> Candidate:
    """Return a candidate; its parameters are appended to ``source``."""
    kind = TYPES[type_name]
    label = kind.label or type_name
    elements = formula_elements(formula)
    lattice, sites = _cell_and_sites(kind, constants)
    parameters = tuple(zip(kind.parameters, constants, strict=True))
    return Candidate(
        name=f"{formula}-{label}",
        structure_type=label,
        lattice=tuple(_vector(row) for row in lattice),
        frac_coords=tuple(_vector(x) for _, x in sites),
        species=tuple(elements[i] for i, _ in sites),
        lattice_source=f"{source}: {describe(parameters)}",
        needs_fit=needs_fit,
        parameters=parameters,
    )


def _vector(row: NDArray[np.float64]) -> Vector:
    # Twelve decimals end the noise of the change of axes, so that 1/2 is 0.5; + 0.0 unsigns zero.
    x, y, z = (round(float(value), 12) + 0.0 for value in row)
    return x, y, z


def _measured(type_name: str, formula: str, constants: tuple[float, ...]) -> Candidate:
    name = f"{formula}-{TYPES[type_name].label or type_name}"
    condition = CONDITIONS.get(name, "room temperature")
    source = f"experimental lattice constant, {condition}"
    return _build(type_name, formula, constants, source, needs_fit=False)


def _estimated(type_name: str, formula: str, constants: tuple[float, ...]) -> Candidate:
    return _build(type_name, formula, constants, "estimate", needs_fit=True)


def _substituted(type_name: str, formula: str) -> Candidate:
    kind = TYPES[type_name]
    origin = most_similar(formula, _known_members(type_name))
    ratio = bond_length(kind, origin.constants, formula) / bond_length(
        kind, origin.constants, origin.formula
    )
    n_axes = len(_AXES[kind.system])
    axes = [round(ratio * value, 3) for value in origin.constants[:n_axes]]
    constants = (*axes, *origin.constants[n_axes:])
    return _build(type_name, formula, constants, f"estimate from {origin.formula}", needs_fit=True)


def _known_members(type_name: str) -> list[_Known]:
    tables = (MEASURED, ESTIMATED)
    return [_Known(f, c) for table in tables for f, c in table.get(type_name, {}).items()]


def most_similar(formula: str, known: Iterable[_Known]) -> _Known:
    """Return the known crystal whose elements are most alike, by column and covalent radius."""
    elements = formula_elements(formula)
    return min(
        known,
        key=lambda member: sum(map(_unlike, elements, formula_elements(member.formula))),
    )


def _unlike(one: str, other: str) -> float:
    # An element of another column bonds in another way: that counts as much as 0.4 Å.
    return abs(_radius(one) - _radius(other)) + 0.4 * (Element(one).group != Element(other).group)


def bond_length(kind: StructureType, constants: Sequence[float], formula: str) -> float:
    """Return the mean, over sites, of the sum of covalent radii along the shortest bond, Å."""
    elements = formula_elements(formula)
    bonds = _shortest_bonds(kind, tuple(constants))
    return float(np.mean([_radius(elements[i]) + _radius(elements[j]) for i, j in bonds]))


@cache
def _shortest_bonds(kind: StructureType, constants: tuple[float, ...]) -> list[tuple[int, int]]:
    """Return, for every site, its place in the formula and that of its nearest other element."""
    lattice, sites = _cell_and_sites(kind, constants)
    index = [i for i, _ in sites]
    distance = Lattice(lattice).get_all_distances(
        np.array([x for _, x in sites]), np.array([x for _, x in sites])
    )
    bonds = []
    for site, here in enumerate(index):
        others = [j for j, there in enumerate(index) if there != here]
        nearest = min(others, key=distance[site].__getitem__)
        bonds.append((here, index[nearest]))
    return bonds


def _radius(symbol: str) -> float:
    return float(covalent_radii[atomic_numbers[symbol]])


def candidates() -> list[Candidate]:
    """Return all candidates, by structure type, the measured ones of a type first."""
    return list(_candidates())


def _candidates() -> Iterator[Candidate]:
    for type_name in TYPES:
        for formula, constants in MEASURED.get(type_name, {}).items():
            yield _measured(type_name, formula, constants)
        for formula, constants in ESTIMATED.get(type_name, {}).items():
            yield _estimated(type_name, formula, constants)
        for formula in SUBSTITUTED.get(type_name, "").split():
            yield _substituted(type_name, formula)


# --------------------------------------------------------------------------- prototypes


def prototypes() -> list[Candidate]:
    """Return the small AFLOW prototypes that pymatgen ships, without those in the list above.

    They are the crystals the structure types are named after, without alloys; what else has no
    gap or an odd number of electrons is told apart by the calculation, not here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optional packages that this part does not need
        from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    seen: dict[str, list[Structure]] = {}
    for candidate in candidates():
        structure = candidate.structure()
        seen.setdefault(structure.composition.reduced_formula, []).append(structure)
    found: list[Candidate] = []
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        structure = entry["snl"].structure
        symbols = {element.symbol for element in structure.composition}
        if EXCLUDED & symbols or symbols <= set(smact.metals):  # alloys have no gap
            continue
        structure = structure.get_primitive_structure()
        if len(structure) > MAX_SITES or _overlaps(structure):
            continue
        known = seen.setdefault(structure.composition.reduced_formula, [])
        if any(_is_same(structure, other) for other in known):
            continue
        known.append(structure)
        found.append(_prototype(structure, entry["tags"]))
    return found


def _overlaps(structure: Structure) -> bool:
    """Whether two atoms are much closer than a bond: the library has a few damaged entries."""
    images = structure.get_all_neighbors(3.0)
    return any(
        neighbour.nn_distance
        < 0.7 * (_radius(site.specie.symbol) + _radius(neighbour.specie.symbol))
        for site, around in zip(structure, images, strict=True)
        for neighbour in around
    )


def _is_same(one: Structure, other: Structure) -> bool:
    return bool(StructureMatcher().fit(one, other))


def _prototype(structure: Structure, tags: Mapping[str, str]) -> Candidate:
    symbol = tags["strukturbericht"].strip('"').replace("\\", "")
    label = tags["aflow"] if symbol == "None" else f"{symbol} {tags['aflow']}"
    formula = Composition(structure.composition).reduced_formula
    return Candidate(
        name=f"{formula}-{label.replace(' ', '-')}",
        structure_type=label,
        lattice=tuple(_vector(row) for row in structure.lattice.matrix),
        frac_coords=tuple(_vector(x) for x in structure.frac_coords),
        species=tuple(site.specie.symbol for site in structure),
        lattice_source=PROTOTYPE_SOURCE,
        needs_fit=False,
    )
