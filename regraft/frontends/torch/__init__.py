"""torch.fx graphs: capture, views, rewriting."""
