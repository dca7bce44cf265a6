//! A workspace as calls from it need it: its folders, its files, the pool that has them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use distest_worker::protocol::{Forward, Network, OsText, TreeNode};
use tokio::sync::Mutex;

use super::folder;
use super::pack::Packer;
use super::pool::Pool;
use super::wire::Call;
use crate::cli::RunArgs;
use crate::collect::Collector;
use crate::compile::{self, Workspace};
use crate::failure::{ExitCode, Failure};
use crate::fleet::{self, Notices, SessionFacts};
use crate::model::Triple;
use crate::settings::{
    self, ConfigFiles, ConstraintSettings, Facts, FleetSettings, LocalSlots, Resolved,
    TravelSettings,
};
use crate::testenv::{Pass, RunFacts};
use crate::travel::Travel;
use crate::tree::Tree;
use crate::tree::copies::Copies;
use crate::tree::keep::ClientStore;
use crate::tree::statcache::StatCache;

/// After this long the files of a workspace are looked at again, also within one tool's run.
const FRESH_FOR: Duration = Duration::from_millis(250);
/// A folder that was changed less than this before it was looked at may change unnoticed.
const RACY: Duration = Duration::from_millis(100);
/// A pool without a worker is tried again after this long.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// One workspace, or a folder that is none.
pub(super) struct Site {
    /// What is laid out.
    roots: Vec<OsText>,
    /// None outside of a workspace: only the executable travels then.
    travel: Option<Travel>,
    store: Arc<ClientStore>,
    copies: Arc<Copies>,
    pub(super) target_dir: PathBuf,
    host: Triple,
    surroundings: Surroundings,
    current: Mutex<Option<Current>>,
    pass: Pass,
    /// Takes what executables leave, for whoever is supplied next. Each of its heirs has its turn.
    collector: std::sync::Mutex<Arc<Collector>>,
}

/// What of the network executables see.
#[derive(Clone, Debug)]
pub struct Surroundings {
    network: Network,
    /// Services of this machine's, in a network of their own.
    forwards: Vec<Forward>,
    notices: Arc<Notices>,
    /// They are heard. Else the caller is told.
    heard: bool,
}

/// What tells one site from another, before cargo has been asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// The package's folder.
    folder: PathBuf,
    cwd: PathBuf,
    /// As the environment says.
    target_dir: Option<PathBuf>,
    build_dir: Option<PathBuf>,
    /// The folder around the executable that cargo has marked as its own.
    tagged: Option<PathBuf>,
}

/// Variables by which a user moves cargo's folders. An agent must not have those of the call that
/// started it.
pub(super) const FOLDER_VARIABLES: [&str; 3] =
    ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR", "CARGO_BUILD_BUILD_DIR"];

impl Place {
    /// Where a call comes from.
    pub(super) fn of(call: &Call) -> Self {
        let cwd = call.cwd.as_path();
        let [target_dir, build_target_dir, build_dir] =
            FOLDER_VARIABLES.map(|name| Some(compile::plain(&cwd.join(call.variable(name)?))));
        let tagged = |folder: &&Path| folder.join("CACHEDIR.TAG").is_file();
        Self {
            folder: call.variable("CARGO_MANIFEST_DIR").unwrap_or_else(|| cwd.to_owned()),
            target_dir: target_dir.or(build_target_dir),
            build_dir,
            tagged: call.program.as_path().ancestors().find(tagged).map(Path::to_owned),
            cwd: cwd.to_owned(),
        }
    }
}

/// What serves calls now.
struct Current {
    supply: Arc<Supply>,
    /// The tree's folders, as they were when they were looked at.
    folders: Arc<Vec<(PathBuf, SystemTime)>>,
    caller: Option<String>,
    looked: Instant,
}

/// Workers that have a site's files as they were at one moment, and what has been packed for them.
pub(super) struct Supply {
    pub(super) pool: Pool,
    pub(super) packer: Packer,
    /// Takes what comes back from these workers.
    pub(super) collector: Arc<Collector>,
    tree: Arc<Tree>,
    made: Instant,
}

impl Supply {
    /// Whether a worker is there, may still come, or has just been found missing.
    fn serves(&self) -> bool {
        !self.collector.is_worn() && (self.pool.alive() || self.made.elapsed() < RETRY_AFTER)
    }
}

/// Whether a workspace is as it was: no file written to, nothing new in a folder, nothing gone. Far
/// cheaper than to gather everything anew. Blocks on the disk.
fn up_to_date(tree: &Tree, folders: &[(PathBuf, SystemTime)]) -> bool {
    let same = |(folder, then): &(PathBuf, SystemTime)| modified(folder) == Some(*then);
    !folders.is_empty() && folders.iter().all(same) && tree.changed().is_empty()
}

/// When the folders of a tree were last changed; none at all if one of them has been just before
/// the tree was looked at or since then: what it holds now may be something else.
fn stamps(roots: &[OsText], tree: &Tree, looked: SystemTime) -> Vec<(PathBuf, SystemTime)> {
    let folders = tree.entries.iter().filter_map(|entry| match entry.node {
        TreeNode::Folder { .. } => Some(entry.path.as_path().to_owned()),
        TreeNode::File { .. } | TreeNode::Link { .. } => None,
    });
    let old = |folder: PathBuf| {
        let modified = modified(&folder)?;
        let age = looked.duration_since(modified).ok()?;
        (age > RACY).then_some((folder, modified))
    };
    let roots = roots.iter().map(|root| root.as_path().to_owned()).filter(|root| root.is_dir());
    roots.chain(folders).map(old).collect::<Option<Vec<_>>>().unwrap_or_default()
}

fn modified(folder: &Path) -> Option<SystemTime> {
    std::fs::metadata(folder).and_then(|metadata| metadata.modified()).ok()
}

impl Surroundings {
    /// Those of tests that no override says anything of.
    pub fn of(constraints: &ConstraintSettings, notices: Arc<Notices>) -> Self {
        let ConstraintSettings { network, forwards, .. } = constraints;
        let (network, forwards) = ((*network).into(), forwards.clone());
        Self { network, forwards, notices, heard: true }
    }

    /// Those of whatever a runner is given: the network of its worker, unless the profile forwards
    /// services, which are found in none but a network of one's own.
    pub(super) fn of_runner(constraints: &ConstraintSettings) -> Self {
        match constraints.forwards.is_empty() {
            true => Self::host(),
            false => Self { heard: false, ..Self::of(constraints, Notices::unheard()) },
        }
    }

    /// Those of what is no test, as far as we know.
    fn host() -> Self {
        let (network, forwards, notices) = (Network::Host, Vec::new(), Notices::unheard());
        Self { network, forwards, notices, heard: false }
    }
}

impl Site {
    /// The site of a package's folder: its workspace, and where the executable is to run.
    pub(super) async fn find(
        place: &Place,
        cargo: PathBuf,
        travel: &TravelSettings,
        surroundings: &Surroundings,
    ) -> Result<Self, Failure> {
        let Place { folder, cwd, target_dir, build_dir, tagged } = place;
        let Some(package) = folder.ancestors().find(|it| it.join("Cargo.toml").is_file()) else {
            return Self::outside(cwd, surroundings);
        };
        let manifest = package.join("Cargo.toml");
        let args = RunArgs {
            build: crate::cli::BuildArgs {
                manifest_path: Some(manifest),
                ..crate::cli::BuildArgs::default()
            },
            ..RunArgs::default()
        };
        let mut settings = settings::compile_settings(&args, &|_| None);
        settings.cargo = cargo;
        // Whoever calls has built it, so all is there.
        settings.metadata_args.push("--offline".into());
        for (key, folder) in [("target-dir", target_dir), ("build-dir", build_dir)] {
            if let Some(folder) = folder {
                let value = toml::Value::from(folder.to_string_lossy().into_owned());
                settings.metadata_args.push("--config".into());
                settings.metadata_args.push(format!("build.{key}={value}").into());
            }
        }
        let mut workspace = compile::metadata(&settings).await?;
        // `--target-dir` is told to nobody but cargo.
        if let Some(tagged) = tagged
            && !tagged.starts_with(&workspace.target_dir)
            && !tagged.starts_with(&workspace.build_dir)
        {
            workspace.target_dir.clone_from(tagged);
            workspace.build_dir.clone_from(tagged);
        }
        let copies = copies(&workspace.target_dir);
        let travel = Travel::new(travel, &workspace)?;
        let collector = travel.collector(&workspace)?;
        let mut site = Self::of(&workspace, travel, collector, copies, surroundings.clone())?;
        if !site.holds(cwd) && may_be_hidden(cwd) {
            site.roots.push(cwd.as_path().into());
        }
        Ok(site)
    }

    /// The site of a workspace, with the means to know its files if the caller has them.
    pub(super) fn of(
        workspace: &Workspace,
        travel: Travel,
        collector: Arc<Collector>,
        copies: Arc<Copies>,
        surroundings: Surroundings,
    ) -> Result<Self, Failure> {
        Ok(Self {
            collector: std::sync::Mutex::new(collector),
            roots: travel.session_roots(workspace),
            pass: travel.pass().clone(),
            travel: Some(travel),
            store: open_store(&workspace.target_dir, &copies)?,
            copies,
            target_dir: workspace.target_dir.clone(),
            host: workspace.host.clone(),
            surroundings,
            current: Mutex::default(),
        })
    }

    fn outside(cwd: &Path, surroundings: &Surroundings) -> Result<Self, Failure> {
        // Whatever lies in there is ours, then.
        let target_dir = folder::private(folder::temporary(), "set TMPDIR")?.join("outside");
        let copies = copies(&target_dir);
        let roots = may_be_hidden(cwd).then_some(cwd).into_iter().chain([&*target_dir]);
        Ok(Self {
            collector: std::sync::Mutex::new(Arc::new(Collector::nothing())),
            roots: roots.map(OsText::from).collect(),
            travel: None,
            pass: Pass::default(),
            store: open_store(&target_dir, &copies)?,
            copies,
            target_dir,
            host: Triple::new(
                distest_worker::hello::Hello::new(distest_worker::hello::Role::Client, "").target,
            ),
            surroundings: surroundings.clone(),
            current: Mutex::default(),
        })
    }

    /// What of the network executables see.
    pub(super) fn network(&self) -> Network {
        self.surroundings.network
    }

    /// Tells the user that something runs here and not there. Only whoever runs tests listens:
    /// a runner's caller is told by the runner itself.
    pub(super) fn tell_run_here(&self, program: &Path, why: &str) {
        // Doctests have a path of their own each, and one notice is enough.
        let why = why.replace(&program.display().to_string(), "doctests");
        let text = format!("doctests run on this machine: {why}");
        self.surroundings.notices.tell(text, "mend that, or start a worker that takes them");
    }

    /// What is told of an executable. Doctests have a path of their own each.
    pub(super) fn name_of(&self, program: &Path) -> String {
        match self.surroundings.heard {
            true => "a doctest".to_owned(),
            false => program.display().to_string(),
        }
    }

    /// What the user should know of a call: told to whoever runs tests, or else in these words to
    /// the caller.
    pub(super) fn remark(&self, text: String) -> Option<String> {
        if self.surroundings.heard {
            self.surroundings.notices.tell(text, "");
            return None;
        }
        Some(text)
    }

    /// Variables that the user wants to travel.
    pub(super) fn pass(&self) -> &Pass {
        &self.pass
    }

    /// What is laid out.
    pub(super) fn roots(&self) -> &[OsText] {
        &self.roots
    }

    /// Whether a path is laid out on workers.
    pub(super) fn holds(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| path.starts_with(root.as_path()))
    }

    /// What an executable was built for, from where it lies.
    pub(super) fn triple_of(&self, program: &Path) -> Triple {
        let below = program.strip_prefix(&self.target_dir).ok();
        let first = below.and_then(|below| below.components().next());
        match first.and_then(|first| first.as_os_str().to_str()) {
            Some(name) if name.matches('-').count() >= 2 => Triple::new(name),
            _ => self.host.clone(),
        }
    }

    /// Workers with this site's files as they are now, or as they were a moment ago.
    pub(super) async fn supply(
        &self,
        call: &Call,
        settings: &FleetSettings,
    ) -> Result<Arc<Supply>, Failure> {
        let mut current = self.current.lock().await;
        if let Some(now) = &*current
            && now.caller.is_some()
            && now.caller == call.caller
            && now.looked.elapsed() < FRESH_FOR
            && now.supply.serves()
        {
            return Ok(Arc::clone(&now.supply));
        }
        if let Some(now) = &mut *current
            && now.caller == call.caller
            && now.supply.serves()
        {
            let (tree, folders) = (Arc::clone(&now.supply.tree), Arc::clone(&now.folders));
            let looking = tokio::task::spawn_blocking(move || up_to_date(&tree, &folders));
            if looking.await.unwrap_or(false) {
                now.looked = Instant::now();
                return Ok(Arc::clone(&now.supply));
            }
        }
        let begun = SystemTime::now();
        let tree = Arc::new(self.look(settings).await?);
        let looked = Instant::now();
        let caller = call.caller.clone();
        // Of now, also for a tree that is the same: what changed just before the last look may
        // have come to rest.
        let folders = Arc::new(stamps(&self.roots, &tree, begun));
        let supply = match current.take() {
            Some(old) if old.supply.tree.entries == tree.entries && old.supply.serves() => {
                if old.caller != caller {
                    old.supply.packer.forget();
                }
                old.supply
            }
            _ => Arc::new(self.fresh_supply(tree, settings)),
        };
        *current = Some(Current { supply: Arc::clone(&supply), folders, caller, looked });
        Ok(supply)
    }

    fn fresh_supply(&self, tree: Arc<Tree>, settings: &FleetSettings) -> Supply {
        let collector = {
            let mut current = self.collector.lock().unwrap_or_else(PoisonError::into_inner);
            *current = Arc::new(current.heir());
            Arc::clone(&current)
        };
        collector.know(Arc::clone(&tree));
        let facts = self.session_facts(Arc::clone(&collector));
        Supply {
            pool: Pool::start(facts, settings.clone(), Arc::clone(&tree)),
            packer: Packer::new(Arc::clone(&self.store), self.target_dir.clone(), &self.roots),
            collector,
            tree,
            made: Instant::now(),
        }
    }

    async fn look(&self, settings: &FleetSettings) -> Result<Tree, Failure> {
        let (Some(travel), false) = (&self.travel, settings.workers.is_empty()) else {
            return Ok(Tree::default());
        };
        let tree = travel.collect(&self.copies).await?;
        let stats = Arc::clone(self.copies.stats());
        // If it can't be saved, files are hashed again.
        let _ = tokio::task::spawn_blocking(move || stats.save()).await;
        Ok(tree)
    }

    fn session_facts(&self, collector: Arc<Collector>) -> SessionFacts {
        let run = RunFacts {
            run: fleet::run_name(),
            profile: String::new(),
            workspace_root: self.target_dir.clone().into(),
            threads: 1,
            attempts_max: 1,
        };
        SessionFacts {
            run,
            roots: self.roots.clone(),
            environment: Vec::new(),
            pass: Pass::default(),
            bare: true,
            writes: distest_worker::protocol::Writes::default(),
            project: String::new(),
            lend_times: false,
            private_networks: self.network() == Network::Private,
            forwards: self.surroundings.forwards.clone(),
            notices: Arc::clone(&self.surroundings.notices),
            collect: self.travel.as_ref().map(Travel::collect_patterns).unwrap_or_default(),
            collect_at_once: true,
            collector,
        }
    }
}

/// Whether a folder of a worker's may be hidden by the client's folder of that name: none that
/// belongs to its system.
fn may_be_hidden(folder: &Path) -> bool {
    let system = ["bin", "boot", "dev", "etc", "lib", "lib64", "proc", "sbin", "sys", "usr", "var"];
    let first = folder.components().nth(1).map(|first| first.as_os_str().to_owned());
    folder.components().count() > 2
        && first.is_some_and(|first| !system.iter().any(|it| first == **it))
}

fn copies(target_dir: &Path) -> Arc<Copies> {
    let stats = Arc::new(StatCache::open(&target_dir.join("distest").join("digests")));
    Arc::new(Copies::new(target_dir, stats))
}

fn open_store(target_dir: &Path, copies: &Arc<Copies>) -> Result<Arc<ClientStore>, Failure> {
    ClientStore::open(target_dir, Arc::clone(copies)).map(Arc::new).map_err(|error| {
        let what = format!("could not open the store in {}", target_dir.display());
        Failure::new(ExitCode::Setup, what).because(error)
    })
}

/// The fleet that is configured for the folder in which we are: no local slots beside workers,
/// unless they are asked for, because whoever runs something through us wants it elsewhere.
pub(super) fn settings_here() -> Result<Resolved, Failure> {
    let cwd = std::env::current_dir().map_err(|error| {
        Failure::new(ExitCode::Setup, "could not find the current directory").because(error)
    })?;
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let folder = manifest.unwrap_or_else(|| cwd.clone());
    // The workspace's root is where its configuration is; finding it properly would need cargo.
    let configured = |folder: &&Path| {
        ["distest.toml", "nextest.toml"].iter().any(|it| folder.join(".config").join(it).is_file())
    };
    let root = folder.ancestors().find(configured).unwrap_or(&folder).to_owned();
    let user = settings::user_config_path();
    let files = ConfigFiles::read(&root, None, user.as_deref())?;
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let facts = Facts { cores, workspace_root: root, cwd };
    let env = |name: &str| std::env::var(name).ok();
    let mut resolved = settings::resolve(&RunArgs::default(), &env, &files, &facts)?;
    resolved.settings.fleet.identity.check()?;
    let fleet = &mut resolved.settings.fleet;
    if fleet.local_slots == LocalSlots::Auto {
        fleet.local_slots = LocalSlots::Count(0);
    }
    Ok(resolved)
}
