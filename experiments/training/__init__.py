"""One trainer for the embedded models: VAE, then text encoder and UNet on its latents."""
