//! What is asked of the API server and told to it: the client, watches, slim objects, the node, Events.

pub(crate) mod client;
pub(crate) mod cluster_size;
pub(crate) mod events;
mod message;
pub(crate) mod node;
pub(crate) mod node_watch;
mod reflector;
pub(crate) mod slim;
pub(crate) mod watch;
pub(crate) mod watched;
pub(crate) mod wire;
