//! Where an artifact comes from: DSSE envelopes with in-toto statements of SLSA provenance.
