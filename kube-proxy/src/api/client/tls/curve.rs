//! What is offered in a handshake: the provider's suites and signatures, and Go's curves.

use std::fmt;

use aws_lc_rs::{
    agreement::{self, ECDH_P521, EphemeralPrivateKey, PublicKey, UnparsedPublicKey},
    rand::SystemRandom,
};
use rustls::{
    Error, NamedGroup, PeerMisbehaved,
    crypto::{
        ActiveKeyExchange, CryptoProvider, GetRandomFailed, SharedSecret, SupportedKxGroup,
        aws_lc_rs::{
            default_provider,
            kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768},
        },
    },
};

pub(super) fn provider() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![X25519MLKEM768, X25519, SECP256R1, SECP384R1, &P521],
        ..default_provider()
    }
}

/// Key exchange over P-521 (`secp521r1`), which rustls does not bring along though aws-lc has it.
struct P521;

impl fmt::Debug for P521 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("secp521r1")
    }
}

impl SupportedKxGroup for P521 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let own = EphemeralPrivateKey::generate(&ECDH_P521, &SystemRandom::new());
        let own = own.map_err(|_| GetRandomFailed)?;
        let public = own.compute_public_key().map_err(|_| GetRandomFailed)?;
        Ok(Box::new(Exchange { own, public }))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

struct Exchange {
    own: EphemeralPrivateKey,
    public: PublicKey,
}

impl ActiveKeyExchange for Exchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let wrong = || Error::from(PeerMisbehaved::InvalidKeyShare);
        // TLS has uncompressed points only (RFC 8446, 4.2.8.2; RFC 8422, 5.1.2). aws-lc checks that it is on the curve.
        if peer.first() != Some(&4) {
            return Err(wrong());
        }
        let peer = UnparsedPublicKey::new(&ECDH_P521, peer);
        agreement::agree_ephemeral(self.own, peer, wrong(), |secret| Ok(SharedSecret::from(secret)))
    }

    fn pub_key(&self) -> &[u8] {
        self.public.as_ref()
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}
