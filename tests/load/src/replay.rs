//! `cargo stack replay`: sends a real shop's purchases through the whole system and compares every view with totals
//! computed from the purchase log.

mod client;
mod compare;
mod progress;
mod purchases;
mod send;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use stack::control::{self, Request};
use stack::layout::{Layout, root};
use stack::services::{PACKAGES, Profile};
use stack::size::Wanted;
use stack::status::Phase;
use stack::supervisor::{Ended, Supervisor, Words};
use stack::up;

use client::Client;
use compare::{Compared, Comparison};
use purchases::{Expected, MAX_SHOPS};
use send::{Orders, Sent};

/// The only product: the purchase log does not identify the CDs.
const PRODUCT: &str = "cd";
/// Initial stock, more than all shops together sell.
const STOCK: u64 = 1_000_000_000;
const REGISTER_PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Purchase log in CDNOW's format, as text or compressed by gzip [default: the one in tests/data]
    file: Option<PathBuf>,
    /// Number of shops to simulate from the file, each with its own customers, orders and days
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SHOPS)))]
    times: u32,
    /// Maximum number of commands per second
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
}

pub(crate) fn run(layout: Layout, profile: Profile, args: &Args) -> Result<ExitCode> {
    let file = args.file.clone().unwrap_or_else(|| root().join("tests/data/cdnow.txt.gz"));
    let purchases = purchases::read(&file)?;
    let expected = Expected::of(&purchases, args.times)?;
    let orders = Orders { purchases: &purchases, shops: args.times };
    if control::is_locked(&layout)? {
        if control::status(&layout)?.state != Phase::Ready {
            bail!("the stack is just starting or stopping; try again in a moment");
        }
        return replay(&layout, args, &orders, &expected, &AtomicBool::new(false));
    }
    println!("No stack is running: starting one for this replay.");
    let options = up::Options { background: false, fresh: false, wanted: Wanted::default(), profile };
    let (_lock, parts, _) = up::prepare(&layout, &options)?;
    let supervisor = Supervisor::new(layout.clone(), parts, up::address(&layout)?.url, Words::All)?;
    let (ready, became_ready) = mpsc::channel();
    let ended = Arc::new(AtomicBool::new(false));
    let servers = thread::spawn({
        let ended = ended.clone();
        move || {
            let result = supervisor.run(|_| ready.send(()).unwrap_or_default());
            ended.store(true, Ordering::Relaxed);
            result
        }
    });
    // On an error the start failed or was cancelled, which the supervisor reports.
    let code = became_ready.recv().ok().map(|()| replay(&layout, args, &orders, &expected, &ended));
    // An error means that the stack is already stopping.
    let _ = control::ask(&layout, &Request::Down);
    match servers.join().map_err(|_| anyhow!("the supervisor panicked"))?? {
        Ended::Signalled => Ok(ExitCode::from(130)),
        Ended::Asked => code.unwrap_or(Ok(ExitCode::FAILURE)),
    }
}

fn replay(
    layout: &Layout,
    args: &Args,
    orders: &Orders<'_>,
    expected: &Expected,
    cancelled: &AtomicBool,
) -> Result<ExitCode> {
    let client = Client::new(layout)?;
    let began = Instant::now();
    register(&client, cancelled)?;
    let sent = send::send(&client, orders, args.rate, cancelled)?;
    let sending = began.elapsed();
    let token = sent.tokens.text();
    let compared = Comparison { client: &client, token: &token, cancelled }.run(expected)?;
    let whole = began.elapsed();
    tell(orders.len(), &sent, expected, &compared);
    println!(
        "time        {:.2} s: {:.2} s to send ({:.0} commands/s), {:.2} s to wait for the views and compare them",
        whole.as_secs_f64(),
        sending.as_secs_f64(),
        orders.len() as f64 / sending.as_secs_f64(),
        (whole - sending).as_secs_f64()
    );
    tell_memory(layout)?;
    Ok(if compared.count_differences() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Registers the product, retrying while the service is unavailable. Repeating it with the same data changes nothing.
fn register(client: &Client, cancelled: &AtomicBool) -> Result<()> {
    let body = format!(r#"{{"name":"A CD","price_cents":1500,"stock":{STOCK}}}"#);
    let begun = Instant::now();
    loop {
        let answer = client.command(&format!("/v1/products/{PRODUCT}/register"), "replay-register", &body);
        match answer {
            Ok(status) if status.is_success() => return Ok(()),
            Ok(status) if !status.is_server_error() => {
                bail!("registering product {PRODUCT:?} failed with {status}; does it already exist with other data?")
            }
            Ok(_) | Err(_) if begun.elapsed() < REGISTER_PATIENCE && !cancelled.load(Ordering::Relaxed) => {
                thread::sleep(Duration::from_millis(200));
            }
            Ok(status) => bail!("registering product {PRODUCT:?} failed with {status}"),
            Err(error) => return Err(error),
        }
    }
}

fn tell(commands: usize, sent: &Sent, expected: &Expected, compared: &Compared) {
    let ms = |quantile| sent.latency.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "commands    {commands}: {} recorded, {} repeated, {} without effect; {} retried",
        sent.recorded, sent.repeated, sent.already, sent.retried
    );
    if sent.recorded == 0 {
        println!("            every order was already recorded: this replay changed nothing");
    }
    println!(
        "latency     p50 {:.1} ms, p99 {:.1} ms from sending a batch to the answer of a command",
        ms(0.5),
        ms(0.99)
    );
    let (orders, units, cents) = expected.totals();
    println!("log         {orders} orders, {units} units, {cents} cents");
    println!(
        "views       {} of {} customers and {} of {} days match the file; {} customers were also read one by one",
        compared.customers,
        expected.customers.len(),
        compared.days,
        expected.days.len(),
        compared.single_reads
    );
    compared.differences.iter().for_each(|difference| println!("difference  {difference}"));
    println!("differences {}", compared.count_differences());
}

/// Prints the resident memory of each service.
fn tell_memory(layout: &Layout) -> Result<()> {
    let ours = |name: &str| PACKAGES.iter().any(|package| name.starts_with(package));
    let processes = control::status(layout)?.processes.into_iter().filter(|process| ours(&process.name));
    let sizes: Vec<_> = processes
        .map(|process| {
            format!("{} {:.0} MiB", process.name, process.resident_bytes.unwrap_or_default() as f64 / 1_048_576.0)
        })
        .collect();
    println!("memory      {}", sizes.join(", "));
    Ok(())
}
