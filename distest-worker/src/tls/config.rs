//! rustls, told to do one thing only.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature_with_raw_key,
};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer,
    UnixTime,
};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};

use super::{Purpose, TlsError, Trust};
use crate::identity::{PrivateKey, PublicKey};

/// Accepts a connection's peer by its key.
pub(super) struct Verifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
    rejected: Mutex<Option<PublicKey>>,
}

impl Verifier {
    fn new(trust: Trust, provider: &CryptoProvider) -> Arc<Self> {
        let algorithms = provider.signature_verification_algorithms;
        Arc::new(Self { trust, algorithms, rejected: Mutex::new(None) })
    }

    /// The key that was presented and not trusted.
    pub(super) fn rejected(&self) -> Option<PublicKey> {
        *self.rejected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, presented: &[u8], more: &[CertificateDer<'_>]) -> Result<(), Error> {
        let key = PublicKey::from_spki(presented).filter(|_| more.is_empty());
        let key = key.ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if (self.trust)(&key) {
            return Ok(());
        }
        *self.rejected.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
        // Told as the alert "access denied".
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    /// Whoever presents a key must sign this very handshake with it.
    fn verify(
        &self,
        message: &[u8],
        presented: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(presented.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        presented: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(presented, more)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        presented: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, presented, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        presented: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(presented, more)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        presented: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify(message, presented, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

/// For the end that dialled.
pub(super) fn client(
    ours: &PrivateKey,
    purpose: Purpose,
    trust: Trust,
) -> Result<(Arc<ClientConfig>, Arc<Verifier>), TlsError> {
    let provider = provider();
    let verifier = Verifier::new(trust, &provider);
    let key = presented(ours, &provider)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key)));
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    config.alpn_protocols = vec![purpose.alpn().to_vec()];
    Ok((Arc::new(config), verifier))
}

/// For the end that was dialled.
pub(super) fn server(
    ours: &PrivateKey,
    purpose: Purpose,
    trust: Trust,
) -> Result<(Arc<ServerConfig>, Arc<Verifier>), TlsError> {
    let provider = provider();
    let verifier = Verifier::new(trust, &provider);
    let key = presented(ours, &provider)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(failed)?
        .with_client_cert_verifier(verifier.clone())
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![purpose.alpn().to_vec()];
    Ok((Arc::new(config), verifier))
}

/// rustls wants one; it is neither sent nor checked.
pub(super) fn no_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into())
}

/// X25519 alone: one answer to one question, and no second round trip.
fn provider() -> Arc<CryptoProvider> {
    let kx_groups = vec![ring::kx_group::X25519];
    Arc::new(CryptoProvider { kx_groups, ..ring::default_provider() })
}

fn presented(ours: &PrivateKey, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, TlsError> {
    let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(ours.pkcs8()));
    let key = provider.key_provider.load_private_key(der).map_err(failed)?;
    let public = CertificateDer::from(ours.public().spki());
    Ok(Arc::new(CertifiedKey::new(vec![public], key)))
}

fn failed(error: Error) -> TlsError {
    TlsError::Failed(error.to_string())
}

fn no_tls12() -> Error {
    Error::General("TLS 1.2 is not spoken here".to_owned())
}
