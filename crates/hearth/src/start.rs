//! What `hearth` alone prints: the way from nothing to a VM for a task.

/// The way, a command a line.
pub(crate) const TEXT: &str = "\
Hearth keeps virtual machines warm: set up with your repositories and variables, ready to be claimed.

  hearth doctor                                what this machine can do, and what to do about what it lacks
  hearth image build                           once: the image that VMs start from, some minutes
  hearth serve                                 the server, in a terminal of its own
  hearth project create app --repo acme/app    a project (add =URL where the repository is not on github.com)
  hearth pool test app                         set one VM up and watch it
  hearth pool set app --enabled --target 2     keep two of them ready
  hearth claim app --task T1                   take one; then: hearth exec ID -- COMMAND, hearth release ID

All commands: hearth --help. One of them: hearth claim --help.
";
