"""Reports of data races, and the issues that they became."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "race_sighting",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=100), nullable=False),
        sa.Column("build", sa.String(length=200), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("at", sa.String(length=24), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("title", sa.String(length=300), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("wanted", sa.String(length=20), server_default="", nullable=False),
        sa.Column("issue", sa.String(length=20), server_default="", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("report", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_race_sighting")),
    )
    op.create_index("ix_race_sighting_key_id_day", "race_sighting", ["key_id", "day"], unique=False)
    op.create_index("ix_race_sighting_state_at", "race_sighting", ["state", "at"], unique=False)
    op.create_table(
        "race_issue",
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.String(length=20), server_default="", nullable=False),
        sa.Column("attempted", sa.Double(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_race_issue")),
    )


def downgrade() -> None:
    raise NotImplementedError("restore the copy that was made before the upgrade")
