//! A thread that keeps the picture of devices fresh.
//!
//! Notifications say that something changed; a scan says what. Bursts (a pod's start is a dozen notifications) are gathered for a moment, and
//! scans keep a distance that grows with their own cost. A slow timer scans anyway: a lost notification costs seconds, not for ever.

use std::io;
use std::time::{Duration, Instant};

use super::scan::scan;
use super::select::Wishes;
use super::{How, Picture};
use crate::netlink::{Heard, Listener, Netlink};

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;

const GROUPS: [u32; 5] =
    [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE];

/// Silence that ends a burst.
const QUIET: Duration = Duration::from_millis(2);
/// A burst is looked at after this even if it goes on.
const LONGEST_BURST: Duration = Duration::from_millis(20);
/// Without any notification.
const RESYNC: Duration = Duration::from_secs(5);
/// A failed scan is tried again after this.
const RETRY: Duration = Duration::from_millis(200);
/// Scans take at most one part in this many of the time.
const SHARE: u32 = 4;

/// A look around that could not be taken.
#[derive(Debug)]
pub struct ScanFailed(pub io::Error);

/// Starts the thread in the caller's network namespace. `each` gets every picture that differs from the last, and every failure; it returns
/// false to end the thread.
///
/// # Errors
/// If notifications cannot be had (EPERM without rights), or the thread cannot be made.
pub fn start(
    wishes: Wishes,
    mut each: impl FnMut(Result<Picture, ScanFailed>) -> bool + Send + 'static,
) -> io::Result<()> {
    // Before the first scan: what changes after it is heard.
    let mut listener = Listener::open(&GROUPS)?;
    let mut netlink = Netlink::open(libc::NETLINK_ROUTE)?;
    std::thread::Builder::new().name("devices".to_owned()).spawn(move || {
        let mut last: Option<Picture> = None;
        let mut hears_neighbours = false;
        loop {
            let began = Instant::now();
            let result = scan(&mut netlink, &wishes);
            let cost = began.elapsed();
            let pause = match result {
                Ok(picture) => {
                    if !hears_neighbours && picture.pods.values().any(|d| d.how != How::Namespace) {
                        // Only now: a busy bridge changes its neighbours all the time.
                        hears_neighbours = listener.join(RTNLGRP_NEIGH).is_ok();
                    }
                    let news = last.as_ref() != Some(&picture);
                    if news {
                        last = Some(picture.clone());
                        if !each(Ok(picture)) {
                            return;
                        }
                    }
                    RESYNC
                }
                Err(e) => {
                    last = None;
                    if !each(Err(ScanFailed(e))) {
                        return;
                    }
                    RETRY
                }
            };
            std::thread::sleep(cost * (SHARE - 1));
            if let Err(e) = wait(&listener, pause) {
                if !each(Err(ScanFailed(e))) {
                    return;
                }
                std::thread::sleep(RETRY);
                if let Ok(fresh) = Listener::open(&GROUPS) {
                    listener = fresh;
                    hears_neighbours = false;
                }
            }
        }
    })?;
    Ok(())
}

/// Until a burst of notifications is over, or nothing came for `pause`.
fn wait(listener: &Listener, pause: Duration) -> io::Result<()> {
    if listener.wait(pause)? == Heard::Nothing {
        return Ok(());
    }
    let began = Instant::now();
    while began.elapsed() < LONGEST_BURST && listener.wait(QUIET)? != Heard::Nothing {}
    Ok(())
}
