"""A stand-in OpenNebula front-end: an XML-RPC server that behaves like the recorded `oned`.

`with Standin(config) as one:` runs one in a thread of its own; `python -m backends.opennebula.standin`
runs one from the command line. It serves loopback only and holds no recorded answer.
"""

from backends.opennebula.standin.config import (
    DatastoreConfig,
    HostConfig,
    HostProfile,
    ImageConfig,
    NetworkConfig,
    StandinConfig,
    TemplateConfig,
    UserConfig,
    VmConfig,
    load_config,
)
from backends.opennebula.standin.faults import FaultKind, FaultRule
from backends.opennebula.standin.standin import Standin

__all__ = [
    "DatastoreConfig",
    "FaultKind",
    "FaultRule",
    "HostConfig",
    "HostProfile",
    "ImageConfig",
    "NetworkConfig",
    "Standin",
    "StandinConfig",
    "TemplateConfig",
    "UserConfig",
    "VmConfig",
    "load_config",
]
