"""The latent-diffusion inpainter; the only importer of diffusers and transformers."""
