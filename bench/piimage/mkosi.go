package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"portcullis/images/deb"
	"portcullis/images/recipe"
)

// mkosiOldest writes disk images without loop devices and takes squashfs for the root.
const mkosiOldest = 24

var mkosiVersion = regexp.MustCompile(`^mkosi ([0-9]+)`)

// haveMkosi says whether mkosi is there and new enough, and otherwise what to install.
func haveMkosi(ctx context.Context) (bool, string) {
	out, _ := exec.CommandContext(ctx, "mkosi", "--version").Output()
	if m := mkosiVersion.FindSubmatch(out); m != nil {
		if v, err := strconv.Atoi(string(m[1])); err == nil && v >= mkosiOldest {
			return true, ""
		}
	}
	return false, fmt.Sprintf("mkosi %d or later is not installed: apt-get install mkosi (Debian 12: with -t bookworm-backports, which brings a newer systemd)", mkosiOldest)
}

// mkosiConfig asks for one squashfs with its dm-verity tree on a GPT disk, compressed.
// The architecture is this machine's: packages' scripts run without emulation.
const mkosiConfig = `[Distribution]
Distribution=debian
Release=%s

[Output]
Format=disk
CompressOutput=zstd
Output=pi

[Content]
Packages=%s
Bootable=no
`

const (
	mkosiRoot   = "[Partition]\nType=root\nFormat=squashfs\nCopyFiles=/\nMinimize=best\nVerity=data\nVerityMatchKey=root\n"
	mkosiVerity = "[Partition]\nType=root-verity\nVerity=hash\nVerityMatchKey=root\nMinimize=best\n"
	// The same mirror as ours, and no lists of sources or debug packages.
	mkosiSources = "Types: deb\nURIs: %s\nSuites: %s\nComponents: %s\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
)

// mkosi builds the same package list, with the kernel of this machine's architecture,
// from nothing. The size is that of the whole compressed disk.
func mkosi(ctx context.Context, dir string, rec *recipe.Recipe) (peerResult, error) {
	var r peerResult
	mirror, err := deb.Mirror(ctx)
	if err != nil {
		return r, err
	}
	packages := append([]string{strings.TrimSuffix(rec.Kernel.Package, "arm64") + "amd64", rec.Kernel.Stub}, rec.Packages...)
	sources := fmt.Sprintf(mkosiSources, mirror, rec.Suite, strings.Join(rec.Components, " "))
	for name, text := range map[string]string{
		"mkosi.conf":                  fmt.Sprintf(mkosiConfig, rec.Suite, strings.Join(packages, ",")),
		"mkosi.repart/10-root.conf":   mkosiRoot,
		"mkosi.repart/11-verity.conf": mkosiVerity,
		// Version 24 looks for its sources in the one, later ones in the other.
		"mkosi.pkgmngr/etc/apt/sources.list.d/mkosi.sources": sources,
		"mkosi.sandbox/etc/apt/sources.list.d/mkosi.sources": sources,
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return r, err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return r, err
		}
	}
	packagesDir := filepath.Join(dir, "packages")
	if err := os.Mkdir(packagesDir, 0o755); err != nil {
		return r, err
	}
	begin := time.Now()
	if err := tool(ctx, dir, nil, "mkosi", "--package-cache-dir", packagesDir, "--force", "build"); err != nil {
		return r, err
	}
	r.seconds = time.Since(begin).Seconds()
	st, err := os.Stat(filepath.Join(dir, "pi.raw.zst"))
	if err != nil {
		return r, err
	}
	r.card = st.Size()
	return r, nil
}
