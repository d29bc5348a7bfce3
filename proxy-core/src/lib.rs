//! Turns Services and EndpointSlices into the smallest possible change; pure, no I/O
