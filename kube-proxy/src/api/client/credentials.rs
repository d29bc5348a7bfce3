//! Who this client says it is, in a header of every request.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header::AUTHORIZATION};
use kube::config::AuthInfo;
use secrecy::ExposeSecret as _;
use tower::BoxError;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    exec::Plugin,
    secret::{bearer, secret},
    token_file::TokenFile,
};

/// Where the header comes from.
#[derive(Debug, Clone)]
pub(super) enum Credentials {
    /// A certificate says it, or nobody.
    Nothing,
    Fixed(HeaderValue),
    File(TokenFile),
    Plugin(Arc<Plugin>),
}

impl Credentials {
    /// The first of these that a kubeconfig names: token file, token, user and password, plugin.
    pub(super) fn of(user: &AuthInfo, plugin: Option<Plugin>) -> anyhow::Result<Self> {
        anyhow::ensure!(
            user.auth_provider.is_none(),
            "auth-provider is no longer known to Kubernetes' programs; use exec"
        );
        let token = user.token.as_ref().map(|token| token.expose_secret()).filter(|token| !token.is_empty());
        let file = user.token_file.as_ref().filter(|path| !path.is_empty());
        let name = user.username.as_deref().filter(|name| !name.is_empty());
        anyhow::ensure!(
            name.is_none() || (token.is_none() && file.is_none()),
            "more than one authentication method found: a token, and user name and password; only one is allowed"
        );
        if let Some(file) = file {
            return Ok(Self::File(TokenFile::open(file.into())?));
        }
        if let Some(token) = token {
            return Ok(Self::Fixed(bearer(token).context("the token in the kubeconfig")?));
        }
        if let Some(name) = name {
            let password =
                user.password.as_ref().map(|password| password.expose_secret()).unwrap_or_default();
            let text = format!("Basic {}", STANDARD.encode(format!("{name}:{password}")));
            return Ok(Self::Fixed(secret(&text)?));
        }
        Ok(plugin.map_or(Self::Nothing, |plugin| Self::Plugin(Arc::new(plugin))))
    }

    /// Puts the header in; which of a plugin's credentials it is.
    async fn put(&self, headers: &mut HeaderMap) -> Result<u64, BoxError> {
        let (number, header) = match self {
            Self::Nothing => (0, None),
            Self::Fixed(header) => (0, Some(header.clone())),
            Self::File(file) => (0, Some(file.header())),
            Self::Plugin(plugin) => plugin.credential().await?,
        };
        if let Some(header) = header {
            headers.insert(AUTHORIZATION, header);
        }
        Ok(number)
    }

    /// What the server thinks of them.
    async fn answered(&self, number: u64, status: StatusCode) {
        match self {
            Self::File(file) if status == StatusCode::UNAUTHORIZED => file.refused(),
            Self::Plugin(plugin) if status == StatusCode::UNAUTHORIZED => plugin.refused(number).await,
            Self::Plugin(plugin) => plugin.accepted(number).await,
            _ => {}
        }
    }
}

impl<S> Layer<S> for Credentials {
    type Service = WithCredentials<S>;

    fn layer(&self, inner: S) -> WithCredentials<S> {
        WithCredentials { inner, credentials: self.clone() }
    }
}

#[derive(Debug, Clone)]
pub(super) struct WithCredentials<S> {
    inner: S,
    credentials: Credentials,
}

impl<S, B, R> Service<Request<B>> for WithCredentials<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: Send + 'static,
    R: Send,
{
    type Response = Response<R>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let credentials = self.credentials.clone();
        // The one that was found ready is called, later.
        let next = self.inner.clone();
        let mut ready = mem::replace(&mut self.inner, next);
        Box::pin(async move {
            let number = credentials.put(request.headers_mut()).await?;
            let answer = ready.call(request).await.map_err(Into::into)?;
            credentials.answered(number, answer.status()).await;
            Ok(answer)
        })
    }
}
