package hpc

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"portcullis/images/debroot"
	"portcullis/images/manifest"
	"portcullis/images/modlist"
	"portcullis/images/modtext"
	"portcullis/images/recipe"
	"portcullis/images/squash"
)

// Places of the project's own files in the root image.
const (
	AgentPath = "/usr/lib/portcullis/hpc-agent"
	MaskPath  = "/usr/lib/portcullis/ktext.mask"
)

// rootInfo is what later stages need to know of a root image; kept beside it.
type rootInfo struct {
	Artefact  manifest.Artefact       `json:"artefact"`
	Verity    manifest.Verity         `json:"verity"`
	Agent     string                  `json:"agent_sha256"`
	Mask      manifest.KernelTextMask `json:"mask"`
	OSRelease string                  `json:"os_release"`
	Epoch     int64                   `json:"epoch"` // time of the newest package file, seconds since 1970

	dir string
}

// root builds root.img: squashfs, padded, with the verity tree behind it.
func (b *builder) root(ctx context.Context, k *debroot.Kernel) (*rootInfo, error) {
	_, version, err := squash.Tool(ctx)
	if err != nil {
		return nil, err
	}
	rk := debroot.NewKey("root", "deb", "debroot", "hpc", "ktextmask", "manifest", "modlist", "modtext", "recipe", "squash", "verity").Add("recipe", recipeKey(b.recipe)).Add("squashfs", version).
		Add("profile", b.Profile).Add("agent", b.digests.Agent).Add("lab", b.digests.Lab).Add("kernel", filepath.Base(k.Dir))
	for _, p := range b.packages.Root {
		rk.Add("package", p.SHA256)
	}
	done := b.Begin("root", "root.img")
	dir, cached, err := b.Stage(ctx, "root", rk, func(dir string) error { return b.makeRoot(ctx, k, dir) })
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, "info.json"))
	if err != nil {
		return nil, err
	}
	info := &rootInfo{dir: dir}
	if err := json.Unmarshal(data, info); err != nil {
		return nil, &Error{Reason: debroot.ReasonCacheBroken, Msg: "cached root image " + dir, Err: err}
	}
	done(cached)
	return info, nil
}

// recipeKey is everything of the recipe that the root image depends on.
func recipeKey(r *recipe.Recipe) string {
	c := *r
	c.Cmdline, c.Packages, c.Components = nil, nil, nil
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // strings, numbers and bytes only
	}
	return string(b)
}

func (b *builder) makeRoot(ctx context.Context, k *debroot.Kernel, dir string) error {
	tree, contents, err := b.Base(ctx, b.packages, b.recipe)
	if err != nil {
		return err
	}
	defer contents.Close()
	info := rootInfo{Agent: b.digests.Agent, Epoch: tree.Time.Unix()}
	if err := b.fill(ctx, k, tree, &info, dir); err != nil {
		return err
	}
	done := b.Begin("squashfs", fmt.Sprintf("zstd level %d", b.recipe.Squash.Level))
	img := filepath.Join(dir, manifest.Root)
	o := squash.Options{Level: b.recipe.Squash.Level, BlockSize: b.recipe.Squash.BlockSize}
	if err := tree.Write(ctx, img, o, b.Maker.Progress.Step); err != nil {
		return err
	}
	done(false)
	done = b.Begin("verity", "hash tree")
	if err := describeRoot(img, &info); err != nil {
		return err
	}
	done(false)
	text, err := json.Marshal(info)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "info.json"), text, 0o644)
}

// describeRoot writes the hash tree behind the squashfs and notes what the manifest says of both.
func describeRoot(img string, info *rootInfo) error {
	v, err := debroot.AppendVerity(img)
	if err != nil {
		return err
	}
	info.Verity = manifest.Verity{RootHash: v.RootHash, Salt: v.Salt, DataBlocks: v.DataBlocks, HashStart: v.DataBlocks}
	f, err := os.Open(img)
	if err != nil {
		return err
	}
	defer f.Close()
	info.Artefact, err = manifest.Describe(manifest.Root, f)
	return err
}

// fill turns the unpacked packages into the PC's root.
func (b *builder) fill(ctx context.Context, k *debroot.Kernel, t *squash.Tree, info *rootInfo, scratch string) error {
	// attestd reads every module that may be loaded out of the root.
	r := *b.recipe
	r.Kernel.Root = slices.Concat(r.Kernel.Root, r.Kernel.Initrd)
	if err := debroot.Populate(ctx, t, &r, k, scratch); err != nil {
		return err
	}
	if err := b.ownFiles(ctx, k, t, info); err != nil {
		return err
	}
	os, err := t.Read("/etc/os-release")
	if err != nil {
		return err
	}
	info.OSRelease = string(os)
	return debroot.Finish(t, b.recipe, b.lab())
}

// ownFiles adds the agent, the mask of the kernel's text and, for the lab, its channel.
func (b *builder) ownFiles(ctx context.Context, k *debroot.Kernel, t *squash.Tree, info *rootInfo) error {
	add := func(to, from string) error {
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		return t.WriteFile(to, 0o755, data)
	}
	if err := add(AgentPath, b.Binaries.Agent); err != nil {
		return err
	}
	if b.recipe.LabChannel {
		if err := add(debroot.LabPath, b.Binaries.Lab); err != nil {
			return err
		}
	}
	about, err := b.aboutKernel(ctx, k)
	if err != nil {
		return err
	}
	info.Mask = about.Mask
	if err := t.WriteFile(modlist.Path, 0o644, about.allow); err != nil {
		return err
	}
	if err := t.WriteFile(modtext.Path, 0o644, about.syms); err != nil {
		return err
	}
	return t.WriteFile(MaskPath, 0o644, about.mask)
}

// osRelease is what the UKI says it is: the distribution's words and ours.
func (b *builder) osRelease(info *rootInfo) []byte {
	var out strings.Builder
	for _, line := range strings.Split(info.OSRelease, "\n") {
		if key, _, ok := strings.Cut(line, "="); ok && (key == "ID" || key == "VERSION_ID" || key == "VERSION_CODENAME") {
			out.WriteString(line + "\n")
		}
	}
	fmt.Fprintf(&out, "NAME=\"Portcullis PC image\"\nPRETTY_NAME=\"Portcullis PC image (%s)\"\nIMAGE_ID=portcullis-%s\nIMAGE_VERSION=%d\n", b.Profile, b.Profile, b.Version)
	return []byte(out.String())
}
