"""Where each method leads on two quadratic tasks in the plane, exactly: `refmeta geometry`."""

from refmeta.lab.geometry.experiment import add_geometry

__all__ = ["add_geometry"]
