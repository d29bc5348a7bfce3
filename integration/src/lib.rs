//! Embedded API server, namespace rig, packet oracle, cross-backend tests, scale benchmark
