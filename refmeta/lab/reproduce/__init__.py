"""The papers' numbers beside ours: `refmeta reproduce`."""
