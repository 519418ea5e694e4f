"""What makes the generated pages: ``python -m docs`` writes them anew (``make docs``)."""
