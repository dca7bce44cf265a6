use std::cell::Cell;

use tokio::io::AsyncWriteExt;

use super::*;
use crate::identity::{Permission, PrivateKey};

fn run() -> Permissions {
    Permissions::from_iter([Permission::Run])
}

fn open(invitations: &Invitations) -> Secret {
    let now = Instant::now();
    invitations.open(run(), now, now + VALID_FOR).unwrap()
}

/// Both parts: what becomes of each, and who has stored something.
async fn meet(
    invitations: &Invitations,
    secret: &Secret,
    host_can: bool,
) -> (Result<Granted, InvitationError>, Result<Guest, InvitationError>, [bool; 2]) {
    let (near, far) = tokio::io::duplex(1024);
    let (guest_stored, host_stored) = (Cell::new(false), Cell::new(false));
    let said = run();
    let guest = redeem(near, secret, &said, "guest", |_| {
        guest_stored.set(true);
        Ok(())
    });
    let host = grant(far, invitations, "host", |_| {
        host_stored.set(host_can);
        if host_can { Ok(()) } else { Err("the disk is full".to_owned()) }
    });
    let (guest, host) = tokio::join!(guest, host);
    (guest, host, [guest_stored.get(), host_stored.get()])
}

#[tokio::test]
async fn an_invitation_is_good_once() {
    let invitations = Invitations::default();
    let secret = open(&invitations);
    let (guest, host, stored) = meet(&invitations, &secret, true).await;
    assert_eq!(guest.unwrap(), Granted { name: "host".into(), permissions: run() });
    assert_eq!(host.unwrap(), Guest { name: "guest".into(), permissions: run() });
    assert_eq!(stored, [true, true]);
    let (guest, host, stored) = meet(&invitations, &secret, true).await;
    assert!(matches!(guest, Err(InvitationError::NotOpen)));
    assert!(matches!(host, Err(InvitationError::NotOpen)));
    assert_eq!(stored, [false, false]);
}

#[tokio::test]
async fn an_expired_or_invented_one_is_not_open() {
    let invitations = Invitations::default();
    let past = Instant::now();
    let expired = invitations.open(run(), past, past).unwrap();
    assert!(!invitations.any(Instant::now()));
    for secret in [expired, Secret::generate().unwrap()] {
        let (guest, _, stored) = meet(&invitations, &secret, true).await;
        assert!(matches!(guest, Err(InvitationError::NotOpen)));
        assert_eq!(stored, [false, false]);
    }
}

#[tokio::test]
async fn a_host_permits_no_more_than_its_invitation_says() {
    let invitations = Invitations::default();
    let now = Instant::now();
    let secret = invitations.open(Permissions::all(), now, now + VALID_FOR).unwrap();
    let (guest, _, stored) = meet(&invitations, &secret, true).await;
    assert!(matches!(guest, Err(InvitationError::MoreThanSaid { .. })), "{guest:?}");
    assert_eq!(stored, [false, false]);
}

#[tokio::test]
async fn if_one_side_cannot_store_neither_does() {
    let invitations = Invitations::default();
    let secret = open(&invitations);
    let (guest, _, stored) = meet(&invitations, &secret, false).await;
    assert!(matches!(guest, Err(InvitationError::Refused(why)) if why.contains("full")));
    assert_eq!(stored, [false, false]);
}

#[tokio::test]
async fn wherever_the_connection_breaks_a_side_that_has_not_heard_the_other_stores_nothing() {
    // Bytes of the guest that get through, and of the host.
    let mut both = 0;
    for cut in 0..200 {
        let invitations = Invitations::default();
        let secret = open(&invitations);
        let (near, relay_near) = tokio::io::duplex(1024);
        let (relay_far, far) = tokio::io::duplex(1024);
        let stored = [Cell::new(false), Cell::new(false)];
        let said = run();
        let guest = redeem(near, &secret, &said, "guest", |_| {
            stored[0].set(true);
            Ok(())
        });
        let host = grant(far, &invitations, "host", |_| {
            stored[1].set(true);
            Ok(())
        });
        let relay = async {
            let (near_in, mut near_out) = tokio::io::split(relay_near);
            let (mut far_in, mut far_out) = tokio::io::split(relay_far);
            let mut some = tokio::io::AsyncReadExt::take(near_in, cut);
            let up = async {
                let _ = tokio::io::copy(&mut some, &mut far_out).await;
                let _ = far_out.shutdown().await;
            };
            let down = async {
                let _ = tokio::io::copy(&mut far_in, &mut near_out).await;
                let _ = near_out.shutdown().await;
            };
            tokio::join!(up, down);
        };
        let (guest, _, ()) = tokio::join!(guest, host, relay);
        let [guest_stored, host_stored] = stored.each_ref().map(Cell::get);
        assert_eq!(guest_stored, guest.is_ok());
        assert!(host_stored || !guest_stored, "cut after {cut} bytes");
        both += u32::from(guest_stored && host_stored);
    }
    assert!(both > 0, "it gets through when nothing is cut");
}

#[test]
fn few_are_open_at_once() {
    let invitations = Invitations::default();
    let now = Instant::now();
    for _ in 0..INVITATIONS_MAX {
        assert!(invitations.open(run(), now, now + VALID_FOR).is_some());
    }
    assert!(invitations.open(run(), now, now + VALID_FOR).is_none());
    let later = now + VALID_FOR;
    assert!(invitations.open(run(), later, later + VALID_FOR).is_some());
}

#[test]
fn invitations_are_read_as_they_are_written() {
    let invitation = Invitation {
        host: Host::Worker,
        address: "[::1]:7".into(),
        key: PrivateKey::generate().unwrap().public(),
        secret: Secret::generate().unwrap(),
        permissions: "run,copy".parse().unwrap(),
    };
    let text = invitation.to_string();
    assert_eq!(text.parse(), Ok(invitation.clone()));
    assert!(!format!("{invitation:?}").contains(text.split('/').nth(4).unwrap()));
    for wrong in [&text[1..], &text[..text.len() - 9], "tcp://h:1", "invite+worker://h/a/b/run"] {
        assert!(wrong.parse::<Invitation>().unwrap_err().contains("invit"), "{wrong}");
    }
}
