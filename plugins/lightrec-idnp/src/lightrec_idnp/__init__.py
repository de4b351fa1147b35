"""IDNP for lightrec: interest dynamics with a neural process. See the README of this distribution."""
