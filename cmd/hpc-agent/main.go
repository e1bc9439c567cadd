// Command hpc-agent claims the boot session for the image that it is part of
// and answers the gateway's questions. hpc-init starts it before systemd.
package main

import (
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"portcullis/agent/bootinfo"
	"portcullis/agent/claim"
	"portcullis/agent/down"
	"portcullis/agent/probe"
	"portcullis/agent/run"
)

func main() {
	note := flag.String("boot", bootinfo.Path, "note that hpc-init left about this boot")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := agent(ctx, *note)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "hpc-agent:", err)
		os.Exit(1)
	}
}

func agent(ctx context.Context, note string) error {
	if err := claim.Harden(); err != nil {
		return err
	}
	info, err := bootinfo.Read(note)
	if err != nil {
		return err
	}
	facts, err := facts(info)
	if err != nil {
		return err
	}
	key, err := claim.NewKey()
	if err != nil {
		return err
	}
	a := &run.Agent{
		Address: info.Gateway,
		Facts:   facts,
		Key:     key,
		Probes:  probe.All(probe.Host{}),
		Down:    down.Now,
		Log:     func(line string) { fmt.Fprintln(os.Stderr, "hpc-agent:", line) },
	}
	a.Run(ctx)
	return nil
}

func facts(info bootinfo.Info) (claim.Facts, error) {
	f := claim.Facts{Session: info.Session, Gateway: info.Key()}
	for _, d := range []struct {
		text string
		to   *[32]byte
	}{{info.ManifestDigest, &f.ManifestDigest}, {info.RootHash, &f.RootHash}} {
		b, err := hex.DecodeString(d.text)
		if err != nil || copy(d.to[:], b) != 32 {
			return claim.Facts{}, fmt.Errorf("boot note: %q is no SHA-256", d.text)
		}
	}
	return f, nil
}
