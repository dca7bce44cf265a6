//! From linked test binaries to planned test cases: taken into the store, listed, filtered, ranked.

use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{fs, io};

use distest_worker::protocol::BinaryKey;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;

use super::company::{self, Candidates};
use super::{Line, blocking, state_folder};
use crate::dispatch::{Order, Planned, Runnable};
use crate::event::{PlanComplete, RunEvent, SkipReason};
use crate::failure::{ExitCode, Failure};
use crate::inventory::{ByTriple, Inventory, LocalLister, NoLister};
use crate::model::{Listing, TestBinary, TestCase};
use crate::parcel::Parcel;
use crate::plan;
use crate::shard::{self, Candidate};
use crate::stamp::{self, Stamp};
use crate::tree::keep::{Blob, ClientStore};

/// A listing that takes longer is told of.
const SLOW_LISTING: Duration = Duration::from_secs(10);

/// How often a binary is listed that is built anew meanwhile.
const LISTINGS_MAX: u32 = 3;

/// Takes in the binaries of one run.
pub(super) struct Intake<'a> {
    line: &'a Line,
    store: Arc<ClientStore>,
    inventory: Inventory<ByTriple<LocalLister, NoLister>>,
}

/// A binary and its test cases.
struct Taken {
    runnable: Arc<Runnable>,
    listing: Listing,
}

/// What has been planned so far.
#[derive(Default)]
struct Tally {
    plan: PlanComplete,
    /// Tests of a static share that can be dealt only when all are known.
    held: Vec<Planned>,
    candidates: Candidates,
}

impl<'a> Intake<'a> {
    /// Opens the store and the cache of listings.
    pub(super) async fn open(line: &'a Line) -> Result<Self, Failure> {
        let target = line.workspace.target_dir.clone();
        let copies = Arc::clone(&line.copies);
        let store =
            blocking(move || ClientStore::open(&target, copies)).await.map_err(|error| {
                let state = state_folder(&line.workspace);
                let what = format!("could not open the store in {}", state.display());
                Failure::new(ExitCode::Setup, what).because(error)
            })?;
        let lister = ByTriple {
            host: line.workspace.host.clone(),
            local: LocalLister::default(),
            foreign: NoLister,
        };
        let whole = &line.settings.select.whole;
        let listings = Some(state_folder(&line.workspace).join("listings"));
        let inventory = Inventory::new(lister, super::cores() as usize, listings, whole)
            .with_probes(company::mode(&line.settings).is_some());
        Ok(Self { line, store: Arc::new(store), inventory })
    }

    /// Plans the tests of every binary that arrives, until no more will.
    pub(super) async fn plan(
        self,
        mut binaries: mpsc::Receiver<TestBinary>,
        orders: &mpsc::Sender<Order>,
    ) -> Result<PlanComplete, Failure> {
        let mut listing = FuturesUnordered::new();
        let mut tally = Tally::default();
        let mut arriving = true;
        while arriving || !listing.is_empty() {
            tokio::select! {
                binary = binaries.recv(), if arriving => match binary {
                    Some(binary) => {
                        let key = BinaryKey(tally.plan.binaries);
                        tally.plan.binaries += 1;
                        listing.push(self.take(key, Arc::new(binary)));
                    }
                    None => arriving = false,
                },
                Some(taken) = listing.next(), if !listing.is_empty() => {
                    self.select(taken?, &mut tally, orders).await;
                }
            }
        }
        drop(listing);
        self.deal(&mut tally, orders).await;
        if let Some(choice) = &self.line.choice {
            choice.tell(std::mem::take(&mut tally.candidates), orders).await;
        }
        tally.plan.listed = self.inventory.executed();
        Ok(tally.plan)
    }

    /// Lists a binary. Another one that cargo puts in its place meanwhile is listed anew: what is
    /// listed is what runs.
    async fn take(&self, key: BinaryKey, binary: Arc<TestBinary>) -> Result<Taken, Failure> {
        // What is listed and hashed right after it was linked could not be remembered.
        if let Ok(metadata) = fs::metadata(&binary.executable) {
            tokio::time::sleep(stamp::youth(&metadata, SystemTime::now())).await;
        }
        for _ in 0..LISTINGS_MAX {
            let (built, kept) = self.keep(&binary).await?;
            let listing = self.list(&binary).await?;
            let Listing { whole, sharing, .. } = listing;
            let parcel = Parcel::new(key, Arc::clone(&binary), kept, Arc::clone(&self.store));
            let binary = Arc::clone(&binary);
            let runnable = Runnable { key, binary, built, whole, sharing, parcel };
            if runnable.is_as_listed() {
                return Ok(Taken { runnable: Arc::new(runnable), listing });
            }
        }
        let executable = binary.executable.display();
        let what = format!("could not list the tests of {} ({executable})", binary.id);
        Err(Failure::new(ExitCode::ListFailed, what)
            .because("it was built anew each time that it was listed")
            .hint("run it again when no other build of this workspace is under way"))
    }

    /// What tells a binary from what may take its place, and a copy of it in the store where workers
    /// other than the embedded one may want it.
    async fn keep(&self, binary: &TestBinary) -> Result<(Stamp, Option<Blob>), Failure> {
        let store = (!self.line.settings.fleet.workers.is_empty()).then(|| Arc::clone(&self.store));
        let path = binary.executable.clone();
        let look = move || match store {
            Some(store) => store.take(&path).map(|blob| (blob.stamp, Some(blob))),
            None => Ok((Stamp::of_contents(&fs::metadata(&path)?), None)),
        };
        blocking(look).await.map_err(|error: io::Error| {
            let what = format!("could not take in {}", binary.executable.display());
            Failure::new(ExitCode::Setup, what).because(error)
        })
    }

    async fn list(&self, binary: &Arc<TestBinary>) -> Result<Listing, Failure> {
        let list = self.inventory.list(Arc::clone(binary));
        match self.line.filter.wants_binary(binary) {
            Some(false) => Ok(Listing {
                binary: Arc::clone(binary),
                cases: Vec::new(),
                whole: false,
                sharing: None,
            }),
            _ => self.with_notice(binary, list).await,
        }
    }

    /// Tells whom everybody waits for when a listing takes long.
    async fn with_notice<T>(&self, binary: &TestBinary, list: impl Future<Output = T>) -> T {
        let mut list = std::pin::pin!(list);
        if let Ok(listed) = tokio::time::timeout(SLOW_LISTING, &mut list).await {
            return listed;
        }
        let seconds = SLOW_LISTING.as_secs();
        let text = format!("{} has been listing its tests for {seconds} s already", binary.id);
        self.line.tell(RunEvent::Warning { text, hint: None }).await;
        list.await
    }

    /// Sends on what is selected; tells of what is not.
    async fn select(&self, taken: Taken, tally: &mut Tally, orders: &mpsc::Sender<Order>) {
        let Taken { runnable, listing } = taken;
        let mut chosen = Vec::new();
        for (place, listed) in (0..).zip(&listing.cases) {
            let name = listed.name.clone();
            let case = TestCase { binary: runnable.binary.id.clone(), name };
            match self.line.filter.decide(&runnable.binary, listed) {
                Ok(()) => {
                    let ignored = listed.ignored;
                    chosen.push(Planned { place, ignored, ..self.rank(case, &runnable) });
                }
                Err(reason) => self.skip(case, &runnable, reason, tally).await,
            }
        }
        match self.line.settings.select.partition {
            Some(_) => tally.held.extend(chosen),
            None => self.send(chosen, tally, orders).await,
        }
    }

    /// Deals held tests to shares and sends on those of ours.
    async fn deal(&self, tally: &mut Tally, orders: &mpsc::Sender<Order>) {
        let Some(partition) = self.line.settings.select.partition else { return };
        let held = std::mem::take(&mut tally.held);
        let candidates: Vec<_> = held
            .iter()
            .map(|test| Candidate { case: &test.case, expected: test.expected })
            .collect();
        let ours = shard::select(partition, &candidates);
        let mut chosen = Vec::new();
        for (test, ours) in held.into_iter().zip(ours) {
            match ours {
                true => chosen.push(test),
                false => self.skip(test.case, &test.runnable, SkipReason::Partition, tally).await,
            }
        }
        self.send(chosen, tally, orders).await;
    }

    async fn send(&self, chosen: Vec<Planned>, tally: &mut Tally, orders: &mpsc::Sender<Order>) {
        if let Some(choice) = &self.line.choice {
            choice.note(tally.plan.tests, &chosen, &mut tally.candidates);
        }
        tally.plan.tests += chosen.len() as u32;
        // Nobody takes orders once the run is cancelled.
        let _ = orders.send(Order::Tests(chosen)).await;
    }

    fn rank(&self, case: TestCase, runnable: &Arc<Runnable>) -> Planned {
        let (rank, expected) = plan::outlook(&case, &self.line.timings);
        Planned {
            rank,
            expected,
            place: 0,
            needs: self.line.constraints.needs(&runnable.binary, &case.name),
            ignored: false,
            runnable: Arc::clone(runnable),
            case,
        }
    }

    async fn skip(
        &self,
        case: TestCase,
        runnable: &Runnable,
        reason: SkipReason,
        tally: &mut Tally,
    ) {
        tally.plan.skipped += 1;
        let triple = runnable.binary.triple.clone();
        self.line.tell(RunEvent::Skipped { case, triple, reason }).await;
    }
}
