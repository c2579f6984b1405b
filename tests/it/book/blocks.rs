//! The commands of the repository's documents, and what the documents say that they print.

use std::fs;
use std::path::Path;

use tests::documents::{self, root};

/// A command of a document.
#[derive(Debug, Clone)]
pub(super) struct Command {
    /// Path of the document below the root.
    pub(super) document: String,
    /// Heading that it stands below.
    pub(super) section: String,
    pub(super) text: String,
    /// Lines that its output has according to the document. `…` stands for anything.
    pub(super) prints: Vec<String>,
}

/// Returns the commands of every document.
pub(super) fn all() -> Vec<Command> {
    let relative = |path: &Path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    documents::all().iter().flat_map(|path| of_document(&relative(path))).collect()
}

/// Returns the commands of a document, in their order: the lines of its `sh` blocks, and those of its `console` blocks
/// after `$`. What a command prints follows in a `console` block, or for the last command of an `sh` block in the `text`
/// block after it.
pub(super) fn of_document(document: &str) -> Vec<Command> {
    let text = fs::read_to_string(root().join(document)).unwrap();
    let mut commands: Vec<Command> = Vec::new();
    let (mut section, mut language) = (String::new(), None);
    let mut is_complete = true;
    for line in text.lines() {
        if let Some(fence) = line.trim_start().strip_prefix("```") {
            language = if language.is_some() { None } else { Some(fence.to_owned()) };
            continue;
        }
        let begin = |text: &str| Command {
            document: document.to_owned(),
            section: section.clone(),
            text: text.to_owned(),
            prints: Vec::new(),
        };
        match language.as_deref() {
            None => {
                if let Some(heading) = line.strip_prefix('#') {
                    heading.trim_start_matches('#').trim().clone_into(&mut section);
                }
            }
            Some("sh") if is_complete => {
                // A line without a command is blank or a comment.
                if !line.trim().is_empty() && !line.trim_start().starts_with('#') {
                    commands.push(begin(line));
                    is_complete = is_whole(line);
                }
            }
            Some("sh") => {
                let command = commands.last_mut().expect("a line continues a command");
                command.text = format!("{}\n{line}", command.text);
                is_complete = is_whole(&command.text);
            }
            Some("console") => match line.strip_prefix("$ ") {
                Some(command) => commands.push(begin(command)),
                None => expect(&mut commands, line),
            },
            Some("text") if commands.last().is_some_and(|last| last.section == section) => expect(&mut commands, line),
            Some(_) => {}
        }
    }
    commands
}

/// Returns the commands of a section.
pub(super) fn of_section((document, section): (&str, &str)) -> Vec<Command> {
    let commands: Vec<_> = of_document(document).into_iter().filter(|command| command.section == section).collect();
    assert!(!commands.is_empty(), "{document} has no commands in {section:?}");
    commands
}

/// Returns whether the text of a command does not continue on the next line.
fn is_whole(text: &str) -> bool {
    let is_loop = text.starts_with("for ") || text.starts_with("while ");
    !text.ends_with('\\') && (!is_loop || text.lines().last().is_some_and(|line| line.starts_with("done")))
}

fn expect(commands: &mut [Command], line: &str) {
    if !line.trim().is_empty() {
        commands.last_mut().expect("output follows a command").prints.push(line.to_owned());
    }
}
