"""What the net beside this file is made of."""

from models.backbone import Backbone

__all__ = ["Backbone"]
