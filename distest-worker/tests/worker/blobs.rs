//! Whose blobs are whose: what one client has sent is another's only if that one holds it, too.

use distest_worker::proof::Nonce;

use super::*;

/// Larger than one piece, so that a worker that had it could say so early.
fn secret() -> Vec<u8> {
    (0..CHUNK_BYTES_MAX + 1000)
        .map(|n| (n as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect()
}

impl Peer {
    async fn missing(&self, digest: Digest) -> bool {
        let answer = self.worker.missing(link::context(DEADLINE), vec![digest]).await;
        !answer.unwrap().unwrap().is_empty()
    }

    async fn lay(&self, digest: Digest, size: u64) -> Result<(), Refusal> {
        let node = TreeNode::File { digest, size, mode: 0o600 };
        let entries = vec![TreeEntry { path: "/client/file".into(), node }];
        self.worker.lay_tree(link::context(DEADLINE), TreeSpec { entries }).await.unwrap()
    }

    /// Sends the first piece of a blob, and no more.
    async fn begin(&self, digest: Digest, size: u64, data: &[u8]) -> Result<PutReply, Refusal> {
        let (encoding, data) = (Encoding::Raw, Bytes::copy_from_slice(data));
        let chunk = BlobChunk { digest, size, encoding, data, last: false };
        self.worker.put(link::context(DEADLINE), chunk).await.unwrap()
    }

    async fn send(&self, blob: &[u8]) {
        let (digest, size) = (Digest::of(blob), blob.len() as u64);
        let mut pieces = blob.chunks(CHUNK_BYTES_MAX).peekable();
        while let Some(piece) = pieces.next() {
            let (data, last) = (Bytes::copy_from_slice(piece), pieces.peek().is_none());
            let chunk = BlobChunk { digest, size, encoding: Encoding::Raw, data, last };
            let reply = self.worker.put(link::context(DEADLINE), chunk).await.unwrap();
            assert_eq!(reply, Ok(if last { PutReply::Stored } else { PutReply::More }));
        }
    }

    async fn nonce(&self) -> Nonce {
        let challenge = self.worker.challenge(link::context(DEADLINE)).await.unwrap().unwrap();
        Nonce::from_bytes(&challenge.nonce).unwrap()
    }

    async fn prove(&self, digest: Digest, size: u64, mac: &[u8]) -> Vec<Digest> {
        let mac = Bytes::copy_from_slice(mac);
        let proofs = vec![Proof { digest, size, mac }];
        self.worker.prove(link::context(DEADLINE), proofs).await.unwrap().unwrap()
    }
}

/// An error's text, without the digest that it is about.
fn text_of(refused: Result<(), Refusal>, digest: Digest) -> String {
    let Refusal { kind, message, hint } = refused.unwrap_err();
    format!("{kind:?} {message} {hint:?}").replace(&digest.to_string(), "DIGEST")
}

#[tokio::test]
async fn a_stolen_blob_digest_is_worth_nothing() {
    let served = Served::start();
    let (_, victim) = client(&served, "victim").await;
    let (_, thief) = client(&served, "thief").await;
    let blob = secret();
    let (digest, size) = (Digest::of(&blob), blob.len() as u64);
    assert!(victim.missing(digest).await);
    victim.send(&blob).await;
    assert!(!victim.missing(digest).await);
    assert_eq!(victim.lay(digest, size).await, Ok(()));

    // The thief knows digest and size. Whatever it asks, the answer is that of a blob which is not
    // there.
    let (absent, other) = (Digest::of(b"nobody has this"), Digest::of(b"nor this"));
    let nonce = thief.nonce().await;
    let (_, accomplice) = client(&served, "accomplice").await;
    let another = accomplice.nonce().await;
    for digest in [digest, absent] {
        assert!(thief.missing(digest).await);
        let not_there = text_of(thief.lay(other, size).await, other);
        assert_eq!(text_of(thief.lay(digest, size).await, digest), not_there);
        let guesses = [
            vec![0; 32],
            Vec::new(),
            nonce.prove(&digest.as_bytes()[..]).unwrap().as_bytes().to_vec(),
            // What was made for another connection.
            another.prove(&blob[..]).unwrap().as_bytes().to_vec(),
        ];
        for guess in guesses {
            assert_eq!(thief.prove(digest, size, &guess).await, []);
        }
        assert_eq!(thief.prove(digest, u64::MAX, &[0; 32]).await, []);
        // A worker that has it and says so would answer the first piece with "stored".
        let reply = thief.begin(digest, size, &vec![0; CHUNK_BYTES_MAX]).await;
        assert_eq!(reply, Ok(PutReply::More));
        let last = Bytes::from(vec![0; 1000]);
        let chunk = BlobChunk { digest, size, encoding: Encoding::Raw, data: last, last: true };
        let refused = thief.worker.put(link::context(DEADLINE), chunk).await.unwrap();
        assert_eq!(refused.unwrap_err().kind, RefusalKind::Corrupt);
        assert!(thief.missing(digest).await);
    }
    // And the victim has it still.
    assert_eq!(victim.lay(digest, size).await, Ok(()));
}

#[tokio::test]
async fn who_holds_a_blob_needs_not_send_it() {
    let mut served = Served::start();
    let (alices, alice) = client(&served, "alice").await;
    let (bobs, bob) = client(&served, "bob").await;
    let blob = secret();
    let (digest, size) = (Digest::of(&blob), blob.len() as u64);
    let nothing = alice.worker.challenge(link::context(DEADLINE)).await.unwrap().unwrap();
    assert_eq!(nothing, Challenge::default(), "an empty store has nothing of others");
    alice.send(&blob).await;
    let proof = bob.nonce().await.prove(&blob[..]).unwrap();
    assert_eq!(bob.prove(digest, size, proof.as_bytes()).await, [digest]);
    assert!(!bob.missing(digest).await);
    assert_eq!(bob.lay(digest, size).await, Ok(()));
    // Another connection of the same key, and another process of the worker.
    assert!(!session_of(&served, &bobs).await.missing(digest).await);
    drop((alice, bob));
    served.restart();
    for key in [&alices, &bobs] {
        let peer = session_of(&served, key).await;
        assert!(!peer.missing(digest).await);
        assert_eq!(peer.lay(digest, size).await, Ok(()));
    }
}

#[tokio::test]
async fn proofs_are_made_for_a_challenge_and_not_without_end() {
    let served = Served::start();
    let (_, alice) = client(&served, "alice").await;
    let proof = Proof { digest: Digest::of(b"x"), size: 1, mac: Bytes::new() };
    let prove = async |proofs: Vec<Proof>| {
        alice.worker.prove(link::context(DEADLINE), proofs).await.unwrap()
    };
    assert_eq!(prove(vec![proof.clone()]).await.unwrap_err().kind, RefusalKind::Invalid);
    let (_, bob) = client(&served, "bob").await;
    bob.send(b"his").await;
    alice.nonce().await;
    assert_eq!(prove(vec![proof.clone()]).await, Ok(vec![]));
    let refused = prove(vec![proof.clone(); PROOFS_MAX + 1]).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Invalid);
    // Bytes are counted but for the largest blob's, which nobody can prove in parts.
    let of = |size| Proof { size, ..proof.clone() };
    assert_eq!(prove(vec![of(u64::MAX), of(1)]).await, Ok(vec![]));
    let refused = prove(vec![of(u64::MAX), of(PROVED_BYTES_MAX), of(1)]).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Invalid);
    assert!(refused.message.contains("268435456 bytes"), "{refused}");
}
