"""Every dynamics by its name: a new one is a file of this package and a row here."""

from __future__ import annotations

from metastable.dynamics.adp import Adp
from metastable.dynamics.base import Dynamics
from metastable.dynamics.gaussian import Gaussian
from metastable.dynamics.langevin import Langevin
from metastable.dynamics.malade import Malade
from metastable.dynamics.reconstruction import Reconstruction
from metastable.dynamics.squeeze import Squeeze
from metastable.dynamics.still import Still

DYNAMICS: dict[str, type[Dynamics]] = {
    one.name: one for one in (Still, Gaussian, Adp, Langevin, Malade, Reconstruction, Squeeze)
}
