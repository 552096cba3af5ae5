//! How runtimes identify, install and monitor plugins.
