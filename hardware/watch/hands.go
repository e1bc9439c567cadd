package watch

import (
	"context"
	"io"
	"os"
	"path/filepath"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/hardware/rearm"
	"portcullis/hardware/tpm2"
	"portcullis/images/card"
	"portcullis/images/luks2"
	"portcullis/internal/rpc"
)

// Hands act on a real Pi.
type Hands struct {
	RunDir string // of the services' sockets
	TPM    string // device
	Config tpm2.Config
	// Crypt finds the encrypted partition; nil: that of the running card.
	Crypt func() (string, error)
}

// DropPC puts the current session into quarantine. Where no PC is connected there is
// nothing to drop, and a gateway that does not run lets nothing through.
func (h *Hands) DropPC(ctx context.Context) error {
	path := filepath.Join(h.RunDir, rpc.GatewaySocket)
	client := portcullisv1connect.NewGatewayClient(rpc.Client(path), rpc.BaseURL)
	s, err := client.GetGatewayStatus(ctx, connect.NewRequest(&v1.GetGatewayStatusRequest{}))
	if err != nil {
		return err
	}
	if s.Msg.Session == "" || s.Msg.Phase == v1.Phase_PHASE_QUARANTINE {
		return nil
	}
	_, err = client.SetPhase(ctx, connect.NewRequest(&v1.SetPhaseRequest{Session: s.Msg.Session, Phase: v1.Phase_PHASE_QUARANTINE, Reason: "tamper"}))
	return err
}

// Cap closes the chip's policy until the next power cycle. pi-init did so before; once
// more costs nothing and does not depend on that.
func (h *Hands) Cap(ctx context.Context) error {
	t, err := tpm2.Open(h.TPM, h.Config)
	if err != nil {
		return err
	}
	defer t.Close()
	return t.Cap(ctx)
}

// Forget makes the chip refuse every blob that it sealed so far.
func (h *Hands) Forget(ctx context.Context) error {
	t, err := tpm2.Open(h.TPM, h.Config)
	if err != nil {
		return err
	}
	defer t.Close()
	return t.Forget(ctx, nil)
}

// Erase overwrites header and keyslots of the volume. The open volume works on until the
// Pi is switched off; then nothing opens it, the recovery key included.
func (h *Hands) Erase(context.Context) error {
	find := h.Crypt
	if find == nil {
		find = func() (string, error) {
			n, err := rearm.Locate(card.SlotA)
			return n.Crypt, err
		}
	}
	node, err := find()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	return luks2.Erase(f, size, card.CryptHeader)
}
