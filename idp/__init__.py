"""idp: how much of a compressed language model's damage does each cheap repair bring back, and at what cost?"""

__version__ = "0.1.0"
