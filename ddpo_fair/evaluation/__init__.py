"""The sittings of `python -m ddpo_fair.evaluate`: what is drawn, judged, kept."""
