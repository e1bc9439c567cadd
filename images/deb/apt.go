package deb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

// keyring is the one set of keys that package lists are accepted from.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Request says what is wanted.
type Request struct {
	Suite      string   // trixie
	Arch       string   // amd64
	Components []string // main, non-free-firmware
	Packages   []string
	// Backports are those of Packages that come from the suite's backports, with
	// what they need of there; everything else comes from the suite itself.
	Backports []string
}

// Store is a directory with apt's private state and the packages fetched so far.
type Store struct{ Dir string }

// MissingToolError names a program that is not installed and the package that has it.
type MissingToolError struct{ Tool, Package string }

func (e *MissingToolError) Error() string {
	return fmt.Sprintf("%s is not installed: apt-get install %s", e.Tool, e.Package)
}

// NeedTool returns a MissingToolError when tool is not on the path or in sbin.
func NeedTool(tool, pkg string) (string, error) {
	if p, err := exec.LookPath(tool); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if st, err := os.Stat(filepath.Join(dir, tool)); err == nil && st.Mode()&0o111 != 0 {
			return filepath.Join(dir, tool), nil
		}
	}
	return "", &MissingToolError{tool, pkg}
}

// mirrors returns where this machine itself gets Debian from: the archive and,
// where it has one, the security archive. The project names no host.
func mirrors(ctx context.Context) (base, security string, err error) {
	out, err := run(ctx, nil, "apt-get", "indextargets", "--format", "$(REPO_URI)|$(CODENAME)|$(ORIGIN)|$(COMPONENT)", "Identifier: Packages")
	if err != nil {
		return "", "", fmt.Errorf("ask apt for this machine's mirror: %w", err)
	}
	return parseTargets(out)
}

// Mirror is the archive that this machine gets Debian from.
func Mirror(ctx context.Context) (string, error) {
	base, _, err := mirrors(ctx)
	return base, err
}

// parseTargets picks the mirrors out of URI|codename|origin|component lines.
func parseTargets(out string) (base, security string, err error) {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	sort.Strings(lines)
	for _, line := range lines {
		f := strings.Split(line, "|")
		if len(f) != 4 || f[2] != "Debian" || f[3] != "main" {
			continue
		}
		if u, err := url.Parse(f[0]); err != nil || u.Scheme == "" || strings.ContainsAny(f[0], " \t\"';") {
			continue
		}
		switch {
		case strings.HasSuffix(f[1], "-security"):
			security = f[0]
		case !strings.Contains(f[1], "-"):
			base = f[0]
		}
	}
	if base == "" {
		return "", "", errors.New("this machine's apt has no Debian archive configured (or 'apt-get update' was never run)")
	}
	return base, security, nil
}

// Resolve finds the packages that r needs, without recommendations, as they
// are in the archive now. The same lists give the same answer.
func (s *Store) Resolve(ctx context.Context, r Request) (*Lock, error) {
	if _, err := NeedTool("apt-get", "apt"); err != nil {
		return nil, err
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	conf, err := s.configure(ctx, r)
	if err != nil {
		return nil, err
	}
	env := append(os.Environ(), "APT_CONFIG="+conf, "LC_ALL=C")
	if _, err := run(ctx, env, "apt-get", "update", "-q"); err != nil {
		return nil, fmt.Errorf("fetch the package lists of %s: %w", r.Suite, err)
	}
	args := []string{"install", "-y", "-q", "--no-install-recommends", "--print-uris"}
	for _, p := range r.Packages {
		if slices.Contains(r.Backports, p) {
			p += "/" + r.Suite + "-backports"
		}
		args = append(args, p)
	}
	out, err := run(ctx, env, "apt-get", args...)
	if err != nil {
		return nil, fmt.Errorf("resolve packages: %w", err)
	}
	lock, err := parseURIs(out)
	if err != nil {
		return nil, err
	}
	for _, p := range r.Packages {
		if _, ok := lock.Get(p); !ok {
			return nil, fmt.Errorf("resolve packages: apt does not say which file %q is", p)
		}
	}
	return lock, nil
}

// configure writes an apt configuration that has its own sources, state and
// cache, and takes from the machine only how to reach the network (Acquire).
func (s *Store) configure(ctx context.Context, r Request) (string, error) {
	// One directory a set of components: apt drops the lists that its sources do not name.
	name := strings.Join(append([]string{"apt", r.Suite, r.Arch}, r.Components...), "-")
	if len(r.Backports) > 0 {
		name += "-backports"
	}
	dir, err := filepath.Abs(filepath.Join(s.Dir, name))
	if err != nil {
		return "", err
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial", "etc/preferences.d", "empty"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return "", err
		}
	}
	base, security, err := mirrors(ctx)
	if err != nil {
		return "", err
	}
	acquire, err := run(ctx, nil, "apt-config", "dump", "Acquire")
	if err != nil {
		return "", fmt.Errorf("read this machine's apt settings: %w", err)
	}
	var conf bytes.Buffer
	for _, line := range strings.Split(acquire, "\n") {
		// Index targets, languages and, below, what is believed are ours; the rest (proxies, certificates, retries) is the machine's.
		if strings.HasPrefix(line, "Acquire::") && !strings.HasPrefix(line, "Acquire::IndexTargets") && !strings.HasPrefix(line, "Acquire::Languages") {
			fmt.Fprintln(&conf, line)
		}
	}
	fmt.Fprintf(&conf, `Dir::State %[1]q;
Dir::State::lists "lists";
Dir::State::status "%[1]s/status";
Dir::Cache "%[1]s/cache";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Etc "%[1]s/etc";
Dir::Etc::main "empty.conf";
Dir::Etc::parts "%[1]s/empty";
Dir::Etc::netrc "/etc/apt/auth.conf";
Dir::Etc::netrcparts "/etc/apt/auth.conf.d";
Dir::Etc::sourcelist "%[1]s/sources.list";
Dir::Etc::sourceparts "%[1]s/empty";
Dir::Etc::trusted "%[2]s";
Dir::Etc::trustedparts "%[1]s/empty";
APT::Architecture %[3]q;
APT::Architectures { %[3]q; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::ForceHash "SHA256";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
APT::Get::AllowUnauthenticated "false";
`, dir, keyring, r.Arch)
	opts := fmt.Sprintf("[arch=%s signed-by=%s]", r.Arch, keyring)
	comps := strings.Join(r.Components, " ")
	sources := fmt.Sprintf("deb %s %s %s %s\ndeb %s %s %s-updates %s\n", opts, base, r.Suite, comps, opts, base, r.Suite, comps)
	if len(r.Backports) > 0 {
		sources += fmt.Sprintf("deb %s %s %s-backports %s\n", opts, base, r.Suite, comps)
	}
	if security != "" {
		sources += fmt.Sprintf("deb %s %s %s-security %s\n", opts, security, r.Suite, comps)
	}
	path := filepath.Join(dir, "apt.conf")
	for name, content := range map[string]string{"apt.conf": conf.String(), "sources.list": sources, "status": "", "etc/empty.conf": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return "", err
		}
	}
	return path, nil
}

// run returns standard output; an error carries the last lines of standard error.
func run(ctx context.Context, env []string, name string, args ...string) (string, error) {
	return runIn(ctx, "", env, name, args...)
}

func runIn(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, args[0], err, lastLines(errs.String(), 5))
	}
	return out.String(), nil
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "; ")
}
