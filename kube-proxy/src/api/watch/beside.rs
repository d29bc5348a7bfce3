//! What is asked beside a watch that runs: for an object that could not be read, and whether the server knows the version
//! that the watch began from.

use std::{future::Future, pin::Pin};

use kube::client::Body;
use proxy_core::model::ObjectName;

use super::exchange::{PATIENCE, Source, chain, encoding, next_piece, refusal, send};
use crate::api::{
    reflector::{Refusal, Request, Version},
    slim::Object,
    wire::{Encoding, ListDecoder, ListPart},
};

/// What is asked beside a watch.
pub(super) type Asked<K> = Pin<Box<dyn Future<Output = Came<K>> + Send>>;

pub(super) enum Came<K> {
    /// The object that was asked for by its name, if it exists.
    Object(Result<Option<Found<K>>, String>),
    /// The version that the server knows.
    Version(Version),
    /// It knows none that is not older.
    Refused(Refusal),
    Nothing(String),
}

/// An object that was asked for by its name.
pub(super) struct Found<K> {
    pub(super) name: ObjectName,
    pub(super) version: Version,
    pub(super) object: K,
}

/// Asks for one object by its name; a list, as a proxy has the right to list, not to get.
pub(super) fn ask_object<K: Object>(source: &Source, name: &ObjectName, request: Request) -> Asked<K> {
    let source = source.clone();
    let path = K::path(name.namespace());
    Box::pin(async move {
        let asked = async {
            let response = send(&source, path, &request).await.map_err(|error| chain(&error))?;
            if !response.status().is_success() {
                return Err(refusal(response).await.message);
            }
            let encoding = encoding(&response).ok_or("an unknown encoding")?;
            only::<K>(response.into_body(), encoding).await
        };
        let asked = tokio::time::timeout(PATIENCE, asked).await;
        Came::Object(asked.unwrap_or_else(|_| Err("no answer".to_owned())))
    })
}

/// Asks which version the server knows: a list of one object.
pub(super) fn ask_version<K: Object>(source: &Source, request: Request) -> Asked<K> {
    let source = source.clone();
    Box::pin(async move {
        let asked = async {
            let response = send(&source, K::path(""), &request).await.map_err(|error| chain(&error))?;
            if !response.status().is_success() {
                return Ok(Came::Refused(refusal(response).await));
            }
            let encoding = encoding(&response).ok_or("an unknown encoding")?;
            version_of::<K>(response.into_body(), encoding).await.map(Came::Version)
        };
        let asked = tokio::time::timeout(PATIENCE, asked).await;
        asked.unwrap_or_else(|_| Err("no answer".to_owned())).unwrap_or_else(Came::Nothing)
    })
}

/// The only object of a list.
async fn only<K: Object>(mut body: Body, encoding: Encoding) -> Result<Option<Found<K>>, String> {
    let mut decoder = ListDecoder::new(encoding);
    let mut found = None;
    loop {
        let piece = next_piece(&mut body).await?;
        decoder.feed(piece.as_deref());
        while let Some(part) = decoder.next::<K>().map_err(|error| error.to_string())? {
            match part {
                ListPart::Item(Ok(object)) => {
                    let metadata = object.metadata();
                    found = Some(Found { name: metadata.name(), version: metadata.version(), object });
                }
                ListPart::Item(Err(unreadable)) => return Err(unreadable.why),
                ListPart::Head { .. } => {}
                ListPart::End => return Ok(found),
            }
        }
    }
}

/// The version of a list; what is in it is passed over.
async fn version_of<K: Object>(mut body: Body, encoding: Encoding) -> Result<Version, String> {
    let mut decoder = ListDecoder::new(encoding);
    loop {
        let piece = next_piece(&mut body).await?;
        decoder.feed(piece.as_deref());
        while let Some(part) = decoder.next::<K>().map_err(|error| error.to_string())? {
            if let ListPart::Head { version, .. } = part {
                return Ok(version);
            }
        }
    }
}
