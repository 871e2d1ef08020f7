"""Systems that decide about whole chains, as arms of an evaluation: a file each, by its name.

What they decide by is in :mod:`glimprouter.chains`; here they solve problems, and what they compute
beside the chain that counts is counted. Where the source trains something, a small one is fitted on
development problems.
"""

from __future__ import annotations

from glimprouter.evaluation.chain_systems.a2r import A2R
from glimprouter.evaluation.chain_systems.ari import ARI
from glimprouter.evaluation.chain_systems.base import ChainSystem, DevelopmentChains
from glimprouter.evaluation.chain_systems.do_stop_me_now import DoStopMeNow
from glimprouter.evaluation.chain_systems.fractured import Fractured
from glimprouter.evaluation.chain_systems.ftp import FTP
from glimprouter.evaluation.chain_systems.laser import LaSeR
from glimprouter.evaluation.chain_systems.self_route import SelfRoute
from glimprouter.evaluation.chain_systems.spirit import Spirit

__all__ = [
    "A2R",
    "ARI",
    "FTP",
    "ChainSystem",
    "DevelopmentChains",
    "DoStopMeNow",
    "Fractured",
    "LaSeR",
    "SelfRoute",
    "Spirit",
]
